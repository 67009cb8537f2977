"""The demo's report counts exact answers and draws two pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from torchtune_qwenvl import load_model, load_transform
from torchtune_qwenvl.demo import answer_accuracy, report_digits, write_digits, write_tiny_checkpoint
from torchtune_qwenvl.demo.answers import Answer, accuracy, ask
from torchtune_qwenvl.demo.pictures import draw_answers

GREEN, RED = (0x15, 0x80, 0x3D), (0xB9, 0x1C, 0x1C)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    write_digits(str(path / "data"), n_val=2, n_test=5, n_train=1, warped=0)
    write_tiny_checkpoint(str(path / "tiny"))
    return path


def _has(path: Path, colour: tuple[int, int, int]) -> bool:
    pixels = np.asarray(Image.open(path).convert("RGB"), dtype=int)
    return bool((abs(pixels - colour).sum(-1) < 12).any())


def test_an_answer_is_right_to_the_last_character():
    given = ["The digit is 7.", "The digit is 7", "the digit is 7.", "The digit is 1."]
    assert accuracy([Answer(Path("x.png"), "The digit is 7.", text) for text in given]) == 0.25


def test_every_record_is_asked_its_question_in_batches(run: Path):
    model, transform = load_model(run / "tiny").train(), load_transform(run / "tiny")
    data = run / "data/test.jsonl"
    answers, singly = ask(model, transform, data, batch_size=3), ask(model, transform, data, batch_size=1)
    assert answers == singly and model.training
    records = [json.loads(line) for line in data.read_text().splitlines()]
    assert [answer.expected for answer in answers] == [
        record["conversations"][1]["value"] for record in records
    ]
    assert [answer.image for answer in answers] == [run / "data" / record["image"] for record in records]


def test_report_ends_with_the_accuracy(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    model, transform = load_model(run / "tiny"), load_transform(run / "tiny")
    data = str(run / "data/test.jsonl")
    lines = ({"step": 1, "loss": 2.0}, {"step": 1, "val_loss": 1.9, "val_accuracy": 0.5})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    answers = report_digits(model, transform, tmp_path, data=data)
    assert capsys.readouterr().out.splitlines()[-1] == f"held-out accuracy {accuracy(answers):.3f} (5 images)"
    assert {path.name for path in tmp_path.iterdir()} == {"curves.png", "answers.png", "metrics.jsonl"}
    assert answer_accuracy(model, transform, data=data) == {"val_accuracy": accuracy(answers)}


def test_picture_shows_right_answers_and_wrong_ones(run: Path, tmp_path: Path):
    image = run / "data/images/test_0000_0.png"
    right, wrong = (
        Answer(image, "The digit is 7.", "The digit is 7."),
        Answer(image, "The digit is 7.", "The digit is 1."),
    )
    draw_answers([right] * 50, tmp_path / "right.png")
    draw_answers([right, wrong], tmp_path / "both.png")
    assert _has(tmp_path / "right.png", GREEN) and not _has(tmp_path / "right.png", RED)
    assert _has(tmp_path / "both.png", GREEN) and _has(tmp_path / "both.png", RED)
    draw_answers(
        [Answer(image, "The digit is 7.", "$\\x$ \n\u2451" * 9)], tmp_path / "nonsense.png"
    )  # no mathtext
