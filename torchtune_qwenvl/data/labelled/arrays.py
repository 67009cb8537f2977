"""Small pictures that are read into memory at once: scikit-learn's digits, and MNIST with its relatives.

MNIST's files are in IDX format: magic number 00 00 <type> <axes>, one big-endian int32 per axis, then bytes.
Source: http://yann.lecun.com/exdb/mnist/.
"""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np

from torchtune_qwenvl.data.labelled.dataset import LabelledImages

MNIST_SPLITS = {"train": "train", "test": "t10k"}
FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def digits(channels: int = 1) -> LabelledImages:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels; ink is white, from 0 to 255."""
    from sklearn.datasets import load_digits  # of the `demo` extra

    data = load_digits()
    images = (data.images * (255 / 16)).round().astype(np.uint8)
    return LabelledImages(images, data.target, data.target_names, name="digits", channels=channels)


def mnist(
    root: str,
    split: str = "train",
    variant: str = "MNIST",
    class_names: list[str] | None = None,
    channels: int = 1,
    download: bool = False,
) -> LabelledImages:
    """MNIST or a data set of the same format (FashionMNIST, KMNIST) from files on disk.

    Args:
        root: folder with the IDX files, packed (.gz) or not, or torchvision's root, which has them in
            `<variant>/raw`.
        split: train or test.
        variant: class of `torchvision.datasets`, for the folder's name and for `download`.
        class_names: None takes the digits, or FashionMNIST's names.
        channels: 1, or 3 for models that take RGB.
        download: fetch missing files by torchvision.

    Raises:
        ValueError: files that are missing or damaged.
    """
    check_split(split, MNIST_SPLITS)
    if download:
        import torchvision.datasets

        getattr(torchvision.datasets, variant)(root, download=True)
    kinds = ("images-idx3-ubyte", "labels-idx1-ubyte")
    files = [find_file(root, f"{variant}/raw", f"{MNIST_SPLITS[split]}-{kind}") for kind in kinds]
    images, labels = (read_idx(file) for file in files)
    if class_names is None:
        class_names = list(FASHION) if variant == "FashionMNIST" else [str(i) for i in range(10)]
    return LabelledImages(images, labels, class_names, name=f"{variant} {split}", channels=channels)


def read_idx(path: Path) -> np.ndarray:
    """uint8 array of an IDX file.

    Raises:
        ValueError: another kind of file, or one that is cut off.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise ValueError(f"{path}: cannot be unpacked: {error}") from error
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise ValueError(f"{path}: expected an IDX file of bytes, it begins with {data[:4]!r}")
    axes = data[3]
    shape = np.frombuffer(data, ">i4", count=axes, offset=4).tolist()
    start, expected = 4 + 4 * axes, math.prod(shape)
    if len(data) - start != expected:
        raise ValueError(f"{path}: its header says {expected} bytes ({shape}), it has {len(data) - start}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def find_file(root: str, folder: str, name: str) -> Path:
    """`name` or `name.gz` in `root/folder` or in `root`.

    Raises:
        ValueError: it is in neither.
    """
    for place in (Path(root) / folder, Path(root)):
        for file in (place / name, place / f"{name}.gz"):
            if file.is_file():
                return file
    raise ValueError(
        f"no {name} in {Path(root) / folder} or {root}: put it there (download=true fetches it with "
        "torchvision)"
    )


def check_split(split: str, known: object) -> None:
    """Raise a ValueError for a split that the data set does not have."""
    names = list(known)  # type: ignore[call-overload]
    if split not in names:
        raise ValueError(f"split: expected one of {', '.join(names)}, got '{split}'")
