"""Coordinates and answers equal transcriptions of what each team published, and are read back."""

import json
import random

import pytest

from torchtune_qwenvl.models.glm4v import GLM4VImageTransform
from torchtune_qwenvl.models.glm4v._boxes import BOXED
from torchtune_qwenvl.models.qwen2_5_vl import Qwen2_5_VLImageTransform
from torchtune_qwenvl.models.qwen2_5_vl._boxes import PIXELS
from torchtune_qwenvl.models.qwen2_vl import Qwen2VLImageTransform
from torchtune_qwenvl.models.qwen2_vl._boxes import PER_MILLE
from torchtune_qwenvl.models.qwen3_vl import Qwen3VLImageTransform
from torchtune_qwenvl.models.qwen3_vl._boxes import JSON_PER_MILLE
from torchtune_qwenvl.transforms.boxes import ImageSize, Place
from torchtune_qwenvl.transforms.boxes.reading import read_places, says_boxes
from torchtune_qwenvl.transforms.boxes.writing import BoxWriter

N_IMAGES = 600
FAMILIES = {
    "qwen2_vl": (PER_MILLE, Qwen2VLImageTransform()),
    "qwen2_5_vl": (PIXELS, Qwen2_5_VLImageTransform()),
    "qwen3_vl": (JSON_PER_MILLE, Qwen3VLImageTransform()),
    "glm4v": (BOXED, GLM4VImageTransform()),
}


def thousandths(box, width, height):
    """Qwen2-VL's and Qwen3-VL's, as in the team's notebook: x1 / w * 1000, rounded, within 0 .. 1000. GLM's:
    round(x_pixel / W * 1000)."""
    return [
        min(max(round(edge / side * 1000), 0), 1000)
        for edge, side in zip(box, [width, height] * 2, strict=True)
    ]


def pixels_after_resize(box, width, height, new_width, new_height):
    """Qwen2.5-VL's: times the scale of its axis, rounded, at most the last pixel."""
    scale_w, scale_h = new_width / width, new_height / height
    left, top, right, bottom = box
    scaled = [round(left * scale_w), round(top * scale_h), round(right * scale_w), round(bottom * scale_h)]
    return [max(0, min(n, last)) for n, last in zip(scaled, [new_width - 1, new_height - 1] * 2, strict=True)]


def quoted(label):
    return json.dumps(label, ensure_ascii=False)


def published_answer(family, boxes, labels):
    """The whole answer, from the published numbers, as the cookbooks print it."""
    if family == "qwen2_vl":
        named = "<|object_ref_start|>{}<|object_ref_end|><|box_start|>({},{}),({},{})<|box_end|>"
        return "".join(named.format(label, *box) for label, box in zip(labels, boxes, strict=True))
    if family == "glm4v":
        listed = [
            f'{{"label": {quoted(label)}, "bbox_2d": [{",".join(map(str, box))}]}}'
            for label, box in zip(labels, boxes, strict=True)
        ]
        shown = ", ".join(listed)
        return f"<|begin_of_box|>[{shown}]<|end_of_box|>"
    lines = [
        f'\t{{"bbox_2d": {box}, "label": {quoted(label)}}}' for label, box in zip(labels, boxes, strict=True)
    ]
    return "```json\n[\n" + ",\n".join(lines) + "\n]\n```"


def random_images(seed=0):
    rng = random.Random(seed)
    for _ in range(N_IMAGES):
        width, height = rng.randint(28, 4000), rng.randint(28, 3000)
        boxes = []
        for _ in range(rng.randint(1, 4)):
            whole = rng.random() < 0.5
            xs, ys = (sorted(rng.uniform(0, side) for _ in "ab") for side in (width, height))
            if rng.random() < 0.1:
                xs, ys = [0, width], [0, height]
            box = (xs[0], ys[0], xs[1], ys[1])
            boxes.append(tuple(map(round, box)) if whole else box)
        yield width, height, boxes, rng.choice([None, 200_000, 2_000_000])


def text_of(convention, places, size):
    part = {
        "type": "boxes",
        "content": [
            {"type": "box", "content": list(p.values), "label": p.label, "unit": "pixels"} for p in places
        ],
    }
    parts, _ = BoxWriter(convention)._written(part, [size], "here", "pixels")
    return "".join(part["content"] for part in parts)


@pytest.mark.parametrize("family", FAMILIES)
def test_random_boxes_are_written_as_published_and_read_back(family):
    convention, transform = FAMILIES[family]
    checked = 0
    for width, height, boxes, limit in random_images():
        new = transform.resize_to(height, width, transform.min_pixels, limit or transform.max_pixels)
        size = ImageSize(height, width, *new)
        labels = [random.Random(str(box)).choice(["cat", 'a "b"', "羊"]) for box in boxes]
        if family == "qwen2_5_vl":
            published = [pixels_after_resize(box, width, height, new[1], new[0]) for box in boxes]
        else:
            published = [thousandths(box, width, height) for box in boxes]
        places = [Place(box, label) for box, label in zip(boxes, labels, strict=True)]
        text = text_of(convention, places, size)
        assert text == published_answer(family, published, labels)
        read = read_places(text, convention, size)
        assert [place.label for place in read] == labels
        for box, place in zip(boxes, read, strict=True):
            steps = [1000, 1000] if convention.grid else [new[1], new[0]]
            for edge, back, side, across, step in zip(
                box, place.values, [width, height] * 2, [new[1], new[0]] * 2, steps * 2, strict=True
            ):
                off = abs(back - edge) / side * across  # in pixels of the resized image
                # Half a pixel, or half of the convention's own step where that is coarser. At the far edge
                # the team's clamp to the last pixel costs up to another half.
                at_edge = convention.grid is None and edge / side * across > across - 1
                assert off <= max(0.5, across / step / 2) * (2 if at_edge else 1) + 1e-6
                checked += 1
    assert checked >= 4 * N_IMAGES


@pytest.mark.parametrize(
    ("family", "plain", "inline"),
    [
        ("qwen2_vl", "<|box_start|>(156,104),(469,417)<|box_end|>", "<|box_start|>(500,500)<|box_end|>"),
        ("qwen2_5_vl", '```json\n[\n\t{"bbox_2d": [101, 50, 302, 198]}\n]\n```', "[322, 238]"),
        ("qwen3_vl", '```json\n[\n\t{"bbox_2d": [156, 104, 469, 417]}\n]\n```', "[500, 500]"),
        (
            "glm4v",
            "<|begin_of_box|>[[156,104,469,417]]<|end_of_box|>",
            "<|begin_of_box|>[[500,500]]<|end_of_box|>",
        ),
    ],
)
def test_one_box_and_one_point(family, plain, inline):
    convention, _ = FAMILIES[family]
    size = ImageSize(480, 640, 476, 644)
    assert text_of(convention, [Place((100, 50, 300, 200))], size) == plain
    point = {"type": "point", "content": [320, 240]}
    parts, (place,) = BoxWriter(convention)._written(point, [size], "here", "pixels")
    assert "".join(part["content"] for part in parts) == inline
    assert [part["content"] for part in parts if part["type"] == "mark"] == [
        mark for mark in convention.marks if mark in inline
    ]
    (back,) = read_places(f"It is at {inline}.", convention, size)
    assert back.is_point and back.values == pytest.approx(place.values, abs=0.5)


def test_answers_are_read_with_and_without_marks_finished_or_cut_off():
    size = ImageSize(500, 1000, 500, 1000)

    def boxes(text, convention=JSON_PER_MILLE):
        return [(place.values, place.label) for place in read_places(text, convention, size)]

    one = (10.0, 10.0, 30.0, 20.0)
    cut = '```json\n[\n\t{"bbox_2d": [10, 20, 30, 40], "label": "a"},\n\t{"bbox_2d": [1, 2'
    assert boxes(cut) == [(one, "a")]
    assert boxes('{"bbox_2d": [30, 40, 10, 20]}') == [(one, None)]  # corners the wrong way round
    assert boxes("sheep(10,20),(30,40)", PER_MILLE) == [(one, None)]
    assert boxes("The <|begin_of_box|>[[10,20,30,40], [10, 20,30,40]]", BOXED) == [(one, None)] * 2
    marked = "<|object_ref_start|>a<|object_ref_end|><|box_start|>(10,20),(30,40)<|box_end|>"
    assert boxes(f"{marked} and {marked}", PER_MILLE) == [(one, "a")] * 2
    assert boxes("There is none.") == [] and boxes('{"bbox_2d": ["a", 1, 2, 3]}') == []
    assert says_boxes(cut) and says_boxes(marked) and not says_boxes("[1, 2, 3, 4]")


def test_a_mark_in_a_label_stays_text():
    size = ImageSize(10, 10, 28, 28)
    part = {"type": "ref", "content": "<|box_start|>"}
    parts, _ = BoxWriter(PER_MILLE)._written(part, [size], "here", "pixels")
    assert [one["type"] for one in parts] == ["mark", "text", "mark"]
