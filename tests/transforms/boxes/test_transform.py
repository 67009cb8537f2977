"""Boxes in conversations: rotated files, limits of one image, several images, templates with reasoning."""

import json

import numpy as np
import pytest
import tiny
from PIL import Image
from torchtune.data import Message

from torchtune_qwenvl import load_transform
from torchtune_qwenvl.data import collate
from torchtune_qwenvl.transforms.errors import BadSample


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Processor files of Qwen2.5-VL and a config, no weights."""
    return write(tmp_path_factory.mktemp("boxes"), "qwen2_5_vl")


@pytest.fixture(scope="module")
def transform(folder):
    return load_transform(folder)


def write(path, family):
    tiny.write_processor_files(path, family=family)
    (path / "config.json").write_text(json.dumps(tiny.nested_config(tiny.tiny_hf_config(family=family))))
    return path


def image(width, height, box=None):
    """Grey, with a white rectangle."""
    pixels = np.full((height, width, 3), 90, np.uint8)
    if box is not None:
        pixels[box[1] : box[3], box[0] : box[2]] = 255
    return Image.fromarray(pixels)


def ask(images, *parts):
    content = [{"type": "image", **one} if isinstance(one, dict) else one for one in images]
    return {"messages": [Message("user", [*content, {"type": "text", "content": "Where?"}]), answer(*parts)]}


def answer(*parts):
    return Message("assistant", list(parts))


def box(*numbers, **more):
    return {"type": "box", "content": list(numbers), "unit": "pixels", **more}


def trained_text(transform, sample):
    kept = [token for token, masked in zip(sample["tokens"], sample["mask"], strict=True) if not masked]
    return transform.decode(kept)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_of_a_rotated_file_surrounds_what_it_surrounds_when_displayed(transform, tmp_path, orientation):
    shown = image(280, 140, (56, 28, 112, 84))  # upright; multiples of 28, so the resize keeps it
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # PIL's transpose that the orientation takes back
    stored = shown.transpose(Image.Transpose(undo[orientation])) if orientation in undo else shown
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    sample = transform(ask([{"content": tmp_path / "a.png"}], box(56, 28, 112, 84)))
    assert trained_text(transform, sample) == "[56, 28, 112, 84]"
    (place,) = sample["boxes"]
    (pixels,) = _resized(sample, transform)
    white = np.argwhere(pixels[:, :, 0] > 200)
    assert (*white.min(0)[::-1], *(white.max(0)[::-1] + 1)) == place.values
    (back,) = transform.read_boxes(trained_text(transform, sample), tmp_path / "a.png")
    assert back.values == (56, 28, 112, 84)


def test_limits_and_sizes_of_each_image_count_for_its_own_boxes(transform):
    small, large = image(280, 140), image(560, 560)
    images = [
        {"content": small},
        {"content": large, "max_pixels": 280 * 280},
        {"content": small, "resized_height": 280, "resized_width": 560},
    ]
    sample = transform(
        ask(
            images,
            *(box(28, 14, 140, 70, image=i) for i in (0, 1, 2)),
        )
    )
    assert trained_text(transform, sample) == "[28, 14, 140, 70][14, 7, 70, 35][56, 28, 280, 140]"
    assert [place.image for place in sample["boxes"]] == [0, 1, 2]
    (back,) = transform.read_boxes("[14, 7, 70, 35]", large, max_pixels=280 * 280)
    assert back.values == (28, 14, 140, 70)


def test_size_counts_the_tokens_of_boxes_and_collate_leaves_them_out(transform):
    sample = ask([{"content": image(56, 56)}], box(1, 2, 30, 40))
    made = transform(sample)
    assert transform.size(sample).tokens == len(made["tokens"])
    labels = [-100 if masked else token for token, masked in zip(made["tokens"], made["mask"], strict=True)]
    assert "boxes" not in collate([{**made, "labels": labels}], padding_idx=transform.pad_id)


def test_boxes_of_dropped_turns_are_not_in_the_sample(folder):
    turns = ask([{"content": image(56, 56)}], box(1, 2, 30, 40))["messages"]
    turns += [Message("user", "And there? " * 40), answer(box(3, 4, 20, 20))]
    sample = load_transform(folder, max_seq_len=120)({"messages": turns})
    assert sample["dropped_turns"] == 2 and len(sample["boxes"]) == 1


def test_units_are_said_or_found(transform):
    def coordinates(*numbers, **more):
        part = {"type": "box", "content": list(numbers), **more}
        return trained_text(transform, transform(ask([{"content": image(280, 140)}], part)))

    assert coordinates(0.1, 0.1, 0.5, 0.5) == coordinates(28, 14, 140, 70) == "[28, 14, 140, 70]"
    assert coordinates(100, 100, 500, 500, unit="norm1000") == "[28, 14, 140, 70]"
    assert coordinates(0, 0, 1, 1, unit="norm1") == "[0, 0, 279, 139]"
    with pytest.raises(BadSample, match=r"no other coordinates than 0 and 1.*box_unit"):
        coordinates(0, 0, 1, 1)


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        (box(0, 0, 300, 100), "leaves its image of 280 x 140 pixels.*, box_unit"),
        (box(10, 0, 5, 100), "right or lower edge comes first"),
        (box(1, 2, 3), "expected a box"),
        (box(1, 2, 3, float("nan")), "expected a box"),
        (box(1, 2, 3, 4, image=1), "a box of image 1, but the conversation has 1 image"),
        (box(1, 2, 3, 4, unit="cm"), "unknown unit of boxes 'cm'"),
        (box(1, 2), "with 2 numbers"),
        ({"type": "boxes", "content": []}, "an empty list of boxes"),
    ],
)
def test_what_is_no_box_of_the_image_is_refused_with_its_place(transform, part, problem):
    with pytest.raises(BadSample, match=problem) as error:
        transform(ask([{"content": image(280, 140)}], part))
    assert "message 1, part 0" in str(error.value) or "a box: " in str(error.value)


def test_labels_are_written_or_refused(transform):
    point = {"type": "point", "content": [12, 25], "label": "nose", "unit": "pixels"}
    sample = transform(ask([{"content": image(280, 140)}], point))
    assert trained_text(transform, sample).startswith(
        '```json\n[\n\t{"point_2d": [12, 25], "label": "nose"}\n]'
    )
    with pytest.raises(BadSample, match=r"message 1, part 1: the label 'nose' of a point in other text"):
        transform(ask([{"content": image(280, 140)}], {"type": "text", "content": "At "}, point))


def test_a_family_without_a_convention_refuses_boxes(folder):
    plain = load_transform(folder)
    plain.write_boxes = type(plain.write_boxes)(None)
    with pytest.raises(BadSample, match="no convention for boxes"):
        plain(ask([{"content": image(56, 56)}], box(1, 2, 30, 40)))


def test_marks_stay_in_place_where_the_template_moves_reasoning(tmp_path):
    """Qwen2-VL's marks in the Thinking template of Qwen3-VL, which rearranges an answer's text."""
    from torchtune_qwenvl.models.qwen2_vl._boxes import PER_MILLE

    folder = write(tmp_path, "qwen3_vl")
    transform = load_transform(folder, boxes=PER_MILLE, chat="thinking", chat_template="builtin")
    thought = {"type": "text", "content": "<think>\nhm\n</think>\n\nThere: "}
    sample = transform(ask([{"content": image(64, 64)}], thought, box(0, 0, 32, 32)))
    kept = [token for token, masked in zip(sample["tokens"], sample["mask"], strict=True) if not masked]
    text = transform.decode(kept, skip_special_tokens=False)
    assert text.startswith("<think>\nhm\n</think>\n\nThere: <|box_start|>(0,0),(500,500)<|box_end|>")
    assert {transform.tokenizer.special_id(mark) for mark in PER_MILLE.marks[2:]} <= set(kept)


def test_marks_stay_in_place_in_glms_answers_with_reasoning():
    from torchtune_qwenvl.models.glm4v._chat import ReasoningChat

    text = {"type": "text", "content": "<think>hm</think>\nThere: "}
    mark = {"type": "mark", "content": "<|begin_of_box|>"}
    spoken = Message("assistant", [text, mark, {"type": "text", "content": "[[1,2]] "}])
    chat = ReasoningChat()
    question = Message("user", "Where?")
    turn = chat.render([question, spoken])[-1]
    assert [getattr(piece, "name", piece) for piece in turn.content] == [
        "<think>hm</think>\nThere: ",
        "<|begin_of_box|>",
        "[[1,2]]",
    ]
    earlier = chat.render([question, spoken, question])[1]  # its reasoning is left out
    assert earlier.content[0] == "<think></think>\nThere: "


def _resized(sample, transform):
    from torchtune_qwenvl.transforms.images.unpatch import images_of

    vision = sample["encoder_input"]["vision"]
    return [np.asarray(one) for one in images_of(vision["images"], vision["grid_thw"], transform)]
