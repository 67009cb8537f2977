"""Boxes of generated answers: read, drawn next to the expected ones, and measured for `evaluate:`."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

from torchtune_qwenvl import load_model, load_transform
from torchtune_qwenvl.checking import draw_sheet
from torchtune_qwenvl.data import vision_chat_dataset
from torchtune_qwenvl.pictures.style import GREEN, ORANGE
from torchtune_qwenvl.training.watch import box_overlap
from torchtune_qwenvl.training.watch.answer_display import draw_answers
from torchtune_qwenvl.training.watch.validation_answers import answer_of, question_of


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    tiny.photo(140, 280).save(folder / "a.png")
    records = [
        {"image": "a.png", "objects": [{"label": "cat", "bbox": [0, 0, 100, 100]}]},
        {"image": "a.png", "question": "What?", "answer": "A cat."},
        {
            "image": "a.png",
            "objects": [
                {"label": "cat", "bbox": [0, 0, 50, 50]},
                {"label": "dog", "bbox": [100, 50, 200, 90]},
            ],
        },
    ]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, records)))
    return folder / "data.jsonl"


@pytest.fixture(scope="module")
def transform(tiny_folder: Path):
    return load_transform(tiny_folder)


def questions(source: Path, transform):
    ids = (transform.image_token_id, transform.video_token_id)
    return [question_of(sample, transform, ids) for sample in vision_chat_dataset(transform, source=source)]


def said(*boxes: tuple[str, list[int]]) -> str:
    return json.dumps([{"bbox_2d": box, "label": label} for label, box in boxes])


def test_expected_boxes_are_those_of_the_record(source, transform) -> None:
    first, text, third = questions(source, transform)
    assert [place.values for place in first.boxes] == [(0, 0, 100, 100)] and first.box_image == 0
    assert text.boxes == () and text.box_image is None
    assert [place.label for place in third.boxes] == ["cat", "dog"]


def test_figures_are_those_of_hand_made_answers(source, transform) -> None:
    first, _, third = questions(source, transform)
    answers = [
        answer_of(
            first, transform.encode(said(("cat", [0, 0, 100, 50]), ("cat", [200, 0, 210, 9]))), transform
        ),
        answer_of(
            third, transform.encode(said(("dog", [100, 50, 200, 90]), ("dog", [0, 0, 50, 50]))), transform
        ),
    ]
    figures = box_overlap.box_figures(answers)
    assert figures == {
        "val_box_iou": pytest.approx((0.5 + 0 + 1) / 3),
        "val_box_recall": pytest.approx(2 / 3),
        "val_box_precision": pytest.approx(2 / 4),
    }
    silent = answer_of(first, transform.encode("Nothing."), transform)
    assert set(box_overlap.box_figures([silent]).values()) == {0.0}


def test_the_component_asks_samples_with_boxes_in_batches(
    source, transform, tiny_folder, monkeypatch
) -> None:
    batches = []

    def exact(model, samples, **options):
        batches.append(len(samples))
        return [transform.encode(said(("cat", [0, 0, 100, 100]))) for _ in samples]

    model = load_model(tiny_folder).train()
    figures = box_overlap.box_iou(model, transform, source=source, max_new_tokens=2)
    assert figures == dict.fromkeys(figures, 0.0) and model.training  # a random model finds nothing
    monkeypatch.setattr(box_overlap, "generate", exact)
    assert box_overlap.box_iou(model, transform, source=source, samples=1)["val_box_iou"] == 1
    assert box_overlap.box_iou(model, transform, source=source, batch_size=1)["val_box_precision"] == 0.5
    assert batches == [1, 1, 1]


def test_a_dataset_without_boxes_is_refused(source, transform, tiny_folder) -> None:
    with pytest.raises(ValueError, match=r"no sample of .* has a first answer with boxes"):
        box_overlap.box_iou(load_model(tiny_folder), transform, source=source, split="train[1:2]")


def has_colour(path: Path, colour: str) -> bool:
    return bool((np.asarray(Image.open(path)) == list(bytes.fromhex(colour[1:]))).all(-1).any())


def test_pictures_show_expected_and_generated_boxes(source, transform, tmp_path) -> None:
    first, text, _ = questions(source, transform)
    given = answer_of(first, transform.encode(said(("cat", [120, 30, 180, 90]))), transform)
    draw_answers([given], 1, tmp_path / "answers.png")
    assert has_colour(tmp_path / "answers.png", GREEN)
    plain = answer_of(text, transform.encode("[1, 2, 3, 4]"), transform)
    assert plain.boxes == ()  # the question is not about boxes
    samples = list(vision_chat_dataset(transform, source=source))
    for number, drawn in ((0, True), (1, False)):
        draw_sheet([("here", samples[number])], transform, 1, tmp_path / "sheet.png")
        corner = Image.open(tmp_path / "sheet.png").crop((60, 100, 480, 600))
        corner.save(tmp_path / "left.png")
        assert has_colour(tmp_path / "left.png", GREEN) == drawn
    assert ORANGE != GREEN


def test_boxes_that_a_text_spells_are_drawn_in_the_sheet(transform, tmp_path) -> None:
    tiny.photo(140, 280).save(tmp_path / "a.png")
    record = {"image": "a.png", "question": "Where?", "answer": said(("cat", [20, 20, 90, 90]))}
    (tmp_path / "d.jsonl").write_text(json.dumps(record))
    (sample,) = vision_chat_dataset(transform, source=tmp_path / "d.jsonl")
    draw_sheet([("here", sample)], transform, 1, tmp_path / "sheet.png")
    Image.open(tmp_path / "sheet.png").crop((60, 100, 480, 600)).save(tmp_path / "left.png")
    assert has_colour(tmp_path / "left.png", GREEN)
