"""The demo's data has three parts that share no digit, and the dataset can read its records."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from torchtune_qwenvl.data.records.messages import MessageParser
from torchtune_qwenvl.demo.digits import SIDE, Warp, draw_digit, split_digits, write_digits

SIZES = {"n_val": 5, "n_test": 7, "n_train": 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("digits")
    write_digits(str(path), **SIZES, warped=2)
    return path


def _records(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def test_split_uses_every_digit_once():
    splits = split_digits(120, 360, None, np.random.default_rng(0))
    assert {split.name: len(split.digits) for split in splits} == {"test": 360, "val": 120, "train": 1317}
    together = np.concatenate([split.images for split in splits]).reshape(1797, -1)
    from sklearn.datasets import load_digits

    assert (np.sort(together, axis=0) == np.sort(load_digits().data, axis=0)).all()


def test_no_image_of_one_part_is_in_another():
    splits = split_digits(120, 360, None, np.random.default_rng(0))
    pixels = {split.name: {image.tobytes() for image in split.images} for split in splits}
    assert not (
        pixels["test"] & pixels["train"] or pixels["test"] & pixels["val"] or pixels["val"] & pixels["train"]
    )


@pytest.mark.parametrize(("name", "count"), [("train", 6 * 3), ("val", 5), ("test", 7)])
def test_records_name_an_image_and_its_digit(folder: Path, name: str, count: int):
    records = _records(folder, name)
    digits = {split.name: split.digits for split in split_digits(5, 7, 6, np.random.default_rng(0))}[name]
    assert len(records) == count
    for number, record in enumerate(records):
        question, answer = MessageParser()(record)
        assert [part["type"] for part in question.content] == ["image", "text"]
        assert answer.text_content == f"The digit is {digits[number * len(digits) // count]}."
        with Image.open(folder / record["image"]) as image:
            assert (image.size, image.mode) == ((SIDE, SIDE), "L")


def test_only_training_images_are_changed(folder: Path):
    for split in split_digits(5, 7, 6, np.random.default_rng(0)):
        plain = np.asarray(draw_digit(split.images[0]))
        assert (np.asarray(Image.open(folder / f"images/{split.name}_0000_0.png")) == plain).all()
    changed = [np.asarray(Image.open(folder / f"images/train_0000_{copy}.png")) for copy in (1, 2)]
    plain = np.asarray(Image.open(folder / "images/train_0000_0.png"))
    assert all((image != plain).mean() > 0.1 for image in changed)


def test_warp_moves_ink_where_it_says():
    ink = np.zeros((8, 8))
    ink[3:5, 3:5] = 16
    shifted = 255 - np.asarray(draw_digit(ink, Warp(angle=0, x=7, y=-14, scale=1)), dtype=float)
    rows, columns = np.indices(shifted.shape)
    centre = (rows * shifted).sum() / shifted.sum(), (columns * shifted).sum() / shifted.sum()
    assert centre == pytest.approx((SIDE / 2 - 0.5 - 14, SIDE / 2 - 0.5 + 7), abs=0.5)
    grown = 255 - np.asarray(draw_digit(ink, Warp(angle=0, x=0, y=0, scale=1.5)), dtype=float)
    plain = 255 - np.asarray(draw_digit(ink), dtype=float)
    assert grown.sum() / plain.sum() == pytest.approx(1.5**2, rel=0.1)


def test_same_seed_same_files_other_seed_other_split(folder: Path, tmp_path: Path):
    write_digits(str(tmp_path / "same"), **SIZES, warped=2)
    write_digits(str(tmp_path / "other"), **SIZES, warped=2, seed=1)
    for name in ("train.jsonl", "images/train_0003_1.png"):
        assert (tmp_path / "same" / name).read_bytes() == (folder / name).read_bytes()
    assert (tmp_path / "other/images/test_0000_0.png").read_bytes() != (
        folder / "images/test_0000_0.png"
    ).read_bytes()


def test_more_digits_than_there_are(tmp_path: Path):
    with pytest.raises(ValueError, match="1797 together; got 0, 1000 and 797"):
        write_digits(str(tmp_path), n_val=1000, n_test=797)
