"""CIFAR-10 and CIFAR-100 from files on disk, in both forms in which they are published.

    cifar-10-batches-bin/data_batch_1.bin     10,000 x (1 byte label, 3,072 bytes picture)
    cifar-100-binary/train.bin                50,000 x (coarse label, fine label, picture)
    cifar-10-batches-py/data_batch_1          a pickled dict of the same bytes: what torchvision unpacks

A picture is 32 x 32: all red values row by row, then green, then blue. A pickle can run code, so it is read
by an unpickler that knows numpy's arrays and nothing else. Source: https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from torchtune_qwenvl.data.labelled.arrays import check_split
from torchtune_qwenvl.data.labelled.dataset import LabelledImages

PICTURE = 3 * 32 * 32
# What numpy's arrays are made of in a pickle, of numpy 1 and 2, and bytes of Python 2 in one of Python 3.
ALLOWED = {
    *((module, "_reconstruct") for module in ("numpy.core.multiarray", "numpy._core.multiarray")),
    *(("numpy", name) for name in ("ndarray", "dtype")),
    ("_codecs", "encode"),
}


@dataclass(frozen=True)
class Layout:
    """Files of one of the two data sets.

    Attributes:
        torchvision: class of `torchvision.datasets`.
        binary: folder of the binary form.
        pickled: folder of the pickled form.
        files: split -> names of the files, without `.bin`.
        label_bytes: bytes in front of a picture; the last one is the label.
        key: of the labels in a pickle.
        names: file of the class names in the binary folder; file and key in the pickled one.
    """

    torchvision: str
    binary: str
    pickled: str
    files: dict[str, tuple[str, ...]]
    label_bytes: int
    key: str
    names: tuple[str, str, str]


CIFAR10 = Layout(
    "CIFAR10",
    "cifar-10-batches-bin",
    "cifar-10-batches-py",
    {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)},
    1,
    "labels",
    ("batches.meta.txt", "batches.meta", "label_names"),
)
CIFAR100 = Layout(
    "CIFAR100",
    "cifar-100-binary",
    "cifar-100-python",
    {"train": ("train",), "test": ("test",)},
    2,
    "fine_labels",
    ("fine_label_names.txt", "meta", "fine_label_names"),
)


def cifar10(root: str, split: str = "train", download: bool = False) -> LabelledImages:
    """CIFAR-10.

    Args:
        root: folder that holds `cifar-10-batches-py` or `cifar-10-batches-bin`; torchvision's root.
        split: train (50,000 pictures) or test (10,000).
        download: fetch missing files by torchvision.

    Raises:
        ValueError: files that are missing or damaged.
    """
    return _read(CIFAR10, root, split, download)


def cifar100(root: str, split: str = "train", download: bool = False) -> LabelledImages:
    """CIFAR-100 with its 100 fine labels; arguments and errors as of `cifar10`."""
    return _read(CIFAR100, root, split, download)


def _read(layout: Layout, root: str, split: str, download: bool) -> LabelledImages:
    check_split(split, layout.files)
    if download:
        import torchvision.datasets

        getattr(torchvision.datasets, layout.torchvision)(root, download=True)
    binary, pickled = Path(root) / layout.binary, Path(root) / layout.pickled
    if binary.is_dir():
        parts = [_read_binary(binary / f"{name}.bin", layout.label_bytes) for name in layout.files[split]]
        class_names: Sequence[str] = _existing(binary / layout.names[0]).read_text(encoding="utf-8").split()
    elif pickled.is_dir():
        parts = [_read_pickled(pickled / name, layout.key) for name in layout.files[split]]
        class_names = _unpickle(pickled / layout.names[1])[layout.names[2]]
    else:
        raise ValueError(
            f"{root}: expected the folder {layout.pickled} or {layout.binary} in it. Unpack the published "
            "archive there (download=true fetches it with torchvision)"
        )
    pictures, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    images = pictures.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return LabelledImages(images, labels, class_names, name=f"{layout.torchvision} {split}")


def _read_binary(path: Path, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    data = np.frombuffer(_existing(path).read_bytes(), np.uint8)
    size = label_bytes + PICTURE
    if len(data) == 0 or len(data) % size:
        raise ValueError(f"{path}: expected a multiple of {size} bytes, got {len(data)}")
    rows = data.reshape(-1, size)
    return rows[:, label_bytes:], rows[:, label_bytes - 1]


def _read_pickled(path: Path, key: str) -> tuple[np.ndarray, np.ndarray]:
    content = _unpickle(path)
    pictures, labels = content.get("data"), content.get(key)
    if not isinstance(pictures, np.ndarray) or pictures.shape[1:] != (PICTURE,) or labels is None:
        raise ValueError(f"{path}: expected 'data' of {PICTURE} bytes per picture, and '{key}'")
    if pictures.dtype != np.uint8 or len(pictures) != len(labels):
        raise ValueError(f"{path}: {len(pictures)} pictures of {pictures.dtype}, {len(labels)} labels")
    return pictures, np.asarray(labels)


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"'{module}.{name}' is not part of an array")
        return super().find_class(module, name)


def _unpickle(path: Path) -> dict[str, Any]:
    try:
        content = _ArraysOnly(io.BytesIO(_existing(path).read_bytes()), encoding="latin1").load()
    # What damaged pickles end in: any of these.
    except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a batch of CIFAR: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a batch of CIFAR: expected a dict, got a {type(content).__name__}")
    return content


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"{path}: no such file; the data set is not complete")
    return path
