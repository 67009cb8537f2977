"""The end of the demo: a log read back, exact answers counted, two pictures that show what was measured."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from torchtune_qwenvl import load_model, load_transform
from torchtune_qwenvl.demo import answer_accuracy, report_digits, write_digits, write_tiny_checkpoint
from torchtune_qwenvl.demo.answers import Answer, accuracy, ask
from torchtune_qwenvl.demo.pictures import draw_answers, draw_curves
from torchtune_qwenvl.demo.report import read_log

GREEN, RED, BLUE = (0x15, 0x80, 0x3D), (0xB9, 0x1C, 0x1C), (0x2B, 0x50, 0xD8)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    write_digits(str(path / "data"), n_val=2, n_test=5, n_train=1, warped=0)
    write_tiny_checkpoint(str(path / "tiny"))
    (path / "log.txt").write_text(
        "Step 1 | loss:2.0 grad_norm:1.0 \nStep 1 | val_loss:1.9 val_accuracy:0.5 \n"
    )
    return path


def _has(path: Path, colour: tuple[int, int, int]) -> bool:
    pixels = np.asarray(Image.open(path).convert("RGB"), dtype=int)
    return bool((abs(pixels - colour).sum(-1) < 12).any())


def test_log_of_one_run(tmp_path: Path):
    log = tmp_path / "log.txt"
    log.write_text("Step 1 | loss:2.5 lr:0.1 \nStep 2 | loss:1.5 lr:0.2 \nStep 2 | val_loss:1e-05\n")
    assert read_log(log) == {
        "loss": [(1, 2.5), (2, 1.5)],
        "lr": [(1, 0.1), (2, 0.2)],
        "val_loss": [(2, 1e-5)],
    }


def test_log_of_a_second_run_replaces_the_first_from_its_step_on(tmp_path: Path):
    log = tmp_path / "log.txt"
    log.write_text(
        "".join(f"Step {step} | loss:{value}\n" for step, value in [(1, 9), (2, 8), (3, 7), (2, 5)])
    )
    assert read_log(log) == {"loss": [(1, 9.0), (2, 5.0)]}


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
    data, log = str(run / "data/test.jsonl"), str(run / "log.txt")
    answers = report_digits(model, transform, tmp_path, data=data, log=log)
    assert capsys.readouterr().out.splitlines()[-1] == f"held-out accuracy {accuracy(answers):.3f} (5 images)"
    assert {path.name for path in tmp_path.iterdir()} == {"curves.png", "answers.png"}
    assert answer_accuracy(model, transform, data=data) == {"val_accuracy": accuracy(answers)}


def test_pictures_show_right_answers_wrong_ones_and_curves(run: Path, tmp_path: Path):
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
    draw_curves({"loss": [(1, 2.0), (2, 1.0)]}, 0.9, tmp_path / "without.png")
    draw_curves({"loss": [(1, 2.0), (2, 1.0)], "val_loss": [(1, 1.5), (2, 1.2)]}, 0.9, tmp_path / "with.png")
    assert _has(tmp_path / "with.png", BLUE) and not _has(tmp_path / "without.png", BLUE)
