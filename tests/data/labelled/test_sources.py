"""Each kind of source, written in its published format by the test, gives its pictures, labels and names."""

import gzip
import io
import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from torchtune_qwenvl.data.labelled import (
    cifar10,
    cifar100,
    digits,
    hub_images,
    image_folder,
    image_table,
    labelled_images,
    mnist,
)

NAMES = ("cat", "dog", "owl")


def picture(seed: int, size: tuple[int, ...] = (12, 10, 3)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(NAMES):
        for i in range(2):
            file = tmp_path / "photos" / name / "more" / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(2 * number + i)).save(file)
    return tmp_path / "photos"


def assert_is(pixels: torch.Tensor, expected: np.ndarray) -> None:
    assert pixels.dtype == torch.uint8
    np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("layout", ["binary", "pickled"])
def test_cifar10(tmp_path: Path, layout: str) -> None:
    """3 pictures per file: planes of red, green, blue, row by row, after one byte of label."""
    pictures, labels = picture(0, (15, 3072)), [i % 10 for i in range(15)]
    names = [f"class {i}".replace(" ", "_") for i in range(10)]
    root = tmp_path / ("cifar-10-batches-bin" if layout == "binary" else "cifar-10-batches-py")
    root.mkdir()
    for part in range(5):
        rows = slice(3 * part, 3 * part + 3)
        if layout == "binary":
            data = b"".join(
                bytes([label]) + row.tobytes()
                for label, row in zip(labels[rows], pictures[rows], strict=True)
            )
            (root / f"data_batch_{part + 1}.bin").write_bytes(data)
        else:
            content = {"data": pictures[rows], "labels": labels[rows], "batch_label": "x"}
            (root / f"data_batch_{part + 1}").write_bytes(pickle.dumps(content, protocol=2))
    (root / "batches.meta.txt").write_text("\n".join(names))
    (root / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    images = cifar10(str(tmp_path))
    assert images.labels == labels and images.class_names == tuple(names)
    assert_is(images.image(7), pictures[7].reshape(3, 32, 32).transpose(1, 2, 0))
    with pytest.raises(ValueError, match=r"test_batch.*no such file"):
        cifar10(str(tmp_path), split="test")


def test_cifar100_takes_the_fine_label(tmp_path: Path) -> None:
    root = tmp_path / "cifar-100-binary"
    root.mkdir()
    rows = picture(1, (4, 3072))
    (root / "test.bin").write_bytes(b"".join(bytes([3, 90 + i]) + rows[i].tobytes() for i in range(4)))
    (root / "fine_label_names.txt").write_text("\n".join(f"n{i}" for i in range(100)))
    assert cifar100(str(tmp_path), split="test").labels == [90, 91, 92, 93]


class _Harmful:
    def __reduce__(self):
        return (Path.touch, (Path("harm"),))


def test_a_pickle_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "cifar-10-batches-py"
    root.mkdir()
    for part in range(1, 6):
        (root / f"data_batch_{part}").write_bytes(pickle.dumps({"data": _Harmful(), "labels": []}))
    with pytest.raises(ValueError, match=r"data_batch_1: not a batch of CIFAR.*not part of an array"):
        cifar10(str(tmp_path))
    assert not Path("harm").exists()
    (root / "data_batch_1").write_bytes(b"\x80\x02}q")
    with pytest.raises(ValueError, match="data_batch_1: not a batch of CIFAR"):
        cifar10(str(tmp_path))
    with pytest.raises(ValueError, match="expected the folder cifar-10-batches-py"):
        cifar10(str(tmp_path / "elsewhere"))


@pytest.mark.parametrize("packed", [True, False])
def test_mnist(tmp_path: Path, packed: bool) -> None:
    pictures, labels = picture(2, (5, 28, 28)), bytes([3, 1, 4, 1, 5])
    write = (lambda data: gzip.compress(data)) if packed else (lambda data: data)
    ending = ".gz" if packed else ""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    head = struct.pack(">BBBBIII", 0, 0, 8, 3, 5, 28, 28)
    (raw / f"t10k-images-idx3-ubyte{ending}").write_bytes(write(head + pictures.tobytes()))
    (raw / f"t10k-labels-idx1-ubyte{ending}").write_bytes(
        write(struct.pack(">BBBBI", 0, 0, 8, 1, 5) + labels)
    )
    images = mnist(str(tmp_path), split="test")
    assert images.labels == list(labels) and images.image(0).shape == (1, 28, 28)
    assert_is(images.image(4), pictures[4][:, :, None])
    assert mnist(str(tmp_path), split="test", channels=3).image(0).shape == (3, 28, 28)
    with pytest.raises(ValueError, match="no train-images-idx3-ubyte in"):
        mnist(str(tmp_path))
    (raw / f"t10k-images-idx3-ubyte{ending}").write_bytes(write(head + pictures.tobytes()[:-1]))
    with pytest.raises(ValueError, match=r"its header says 3920 bytes"):
        mnist(str(tmp_path), split="test")


def test_digits() -> None:
    images = digits()
    assert len(images) == 1797 and images.class_names == tuple("0123456789")
    assert images.image(0).max() <= 255 and images.image(0).shape == (1, 8, 8)


def test_image_folder(folder: Path) -> None:
    images = image_folder(str(folder))
    assert images.class_names == NAMES and images.labels == [0, 0, 1, 1, 2, 2]
    assert_is(images.image(3), picture(3))
    assert image_folder(str(folder), class_names=["owl", "cat"]).labels == [0, 0, 1, 1]
    assert image_folder(str(folder.parent), split="photos").labels == images.labels
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match="no image in the folder of class 'empty'"):
        image_folder(str(folder))


def test_tables(folder: Path) -> None:
    rows = [("cat/more/1.png", "cat"), ("owl/more/0.png", "owl")]
    (folder / "a.csv").write_text("path,label\n" + "\n".join(",".join(row) for row in rows))
    (folder / "b.jsonl").write_text("\n".join(json.dumps({"image": p, "class": c}) for p, c in rows))
    for images in (
        image_table(str(folder / "a.csv")),
        image_table(str(folder / "b.jsonl"), image_column="image", label_column="class"),
        labelled_images(str(folder / "a.csv")),
    ):
        assert images.labels == [0, 1] and images.class_names == ("cat", "owl")
        assert_is(images.image(1), picture(4))
    with pytest.raises(ValueError, match=r"b.jsonl, line 1: expected a value in column 'path'"):
        image_table(str(folder / "b.jsonl"))
    with pytest.raises(ValueError, match=r"a.csv, line 3: class 'owl' is not in class_names"):
        image_table(str(folder / "a.csv"), class_names=["cat", "dog"])
    with pytest.raises(ValueError, match=r"image_table, which has no 'class_name'. Did you mean"):
        labelled_images(str(folder / "a.csv"), class_name=["cat"])


def test_numbers_are_sorted_as_numbers(folder: Path) -> None:
    (folder / "a.csv").write_text("path,label\n" + "".join(f"cat/more/0.png,{n}\n" for n in (10, 9, 2)))
    assert image_table(str(folder / "a.csv")).class_names == ("2", "9", "10")


def test_hub(folder: Path, tmp_path: Path) -> None:
    import datasets

    buffer = io.BytesIO()
    Image.fromarray(picture(9)).save(buffer, "png")
    columns = {
        "image": [str(folder / "cat/more/0.png"), {"bytes": buffer.getvalue(), "path": None}],
        "label": [1, 0],
    }
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["b", "a"])})
    data = datasets.Dataset.from_dict(columns, features=features)
    data.save_to_disk(tmp_path / "saved")
    for images in (hub_images(data), labelled_images(str(tmp_path / "saved"))):
        assert images.labels == [1, 0] and images.class_names == ("b", "a")
        assert_is(images.image(0), picture(0))
        assert_is(images.image(1), picture(9))
    assert hub_images(data, class_names=["a", "b"]).labels == [0, 1]
    with pytest.raises(ValueError, match="no column 'answer', the columns are image, label"):
        hub_images(data, label_column="answer")


def test_classes_of_the_validation_set(folder: Path) -> None:
    images = image_folder(str(folder))
    other = image_folder(str(folder), class_names=["owl", "dog"]).with_classes_of(images)
    assert other.labels == [2, 2, 1, 1] and other.class_names == NAMES
    with pytest.raises(ValueError, match="class 'owl' is not a class of"):
        images.with_classes_of(image_folder(str(folder), class_names=["cat", "dog"]))


def test_a_damaged_file_is_named(folder: Path) -> None:
    broken = folder / "dog/more/1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(ValueError, match=str(broken)):
        image_folder(str(folder)).image(3)
