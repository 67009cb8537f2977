"""Image files: a folder per class, or a table of paths and labels."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torchvision.datasets.folder import IMG_EXTENSIONS

from torchtune_qwenvl.data.labelled.dataset import LabelledImages, number_classes
from torchtune_qwenvl.transforms.errors import BadSample

TABLES = (".csv", ".tsv", ".jsonl")
# torchvision's ImageFolder takes the same endings.
ENDINGS = tuple(IMG_EXTENSIONS)


def image_folder(
    root: str, split: str | None = None, class_names: Sequence[str] | None = None, channels: int = 3
) -> LabelledImages:
    """A folder per class, as torchvision's ImageFolder has it: `root/cat/1.jpg`, subfolders included.

    Args:
        root: the folder of the classes' folders.
        split: subfolder of `root` that holds them (train, val, ...); None if `root` does.
        class_names: the folders to read, in this order; None reads all, sorted by name.
        channels: 3, or 1 for grey.

    Raises:
        ValueError: no folder of this name, no classes, or a class without an image.
    """
    folder = Path(root) / split if split else Path(root)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected one with a subfolder per class")
    names = [str(name) for name in class_names] if class_names is not None else _subfolders(folder)
    if not names:
        raise ValueError(f"{folder}: expected a subfolder per class, found none")
    paths: list[str] = []
    labels: list[int] = []
    for number, name in enumerate(names):
        found = sorted(str(p) for p in (folder / name).rglob("*") if p.suffix.lower() in ENDINGS)
        if not found:
            raise ValueError(
                f"{folder / name}: no image in the folder of class '{name}' ({', '.join(ENDINGS)})"
            )
        paths += found
        labels += [number] * len(found)
    return LabelledImages(paths, labels, names, name=str(folder), channels=channels)


def image_table(
    source: str,
    image_root: str | None = None,
    image_column: str = "path",
    label_column: str = "label",
    class_names: Sequence[str] | None = None,
    channels: int = 3,
) -> LabelledImages:
    """A CSV, TSV or JSONL file with a path and a label per line.

    Args:
        source: the file; CSV and TSV have a line of column names.
        image_root: folder that paths are relative to; None takes the file's own.
        image_column: column of the paths.
        label_column: column of the labels, class names or numbers.
        class_names: the classes in their order; None sorts what occurs.
        channels: 3, or 1 for grey.

    Raises:
        ValueError: no such file, a column that is missing, or an unknown class; names file and line.
    """
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected a table ending in {', '.join(TABLES)}")
    root = Path(image_root) if image_root is not None else path.parent
    images, names, places = [], [], []
    for line, row in _rows(path):
        place = f"{path}, line {line}"
        for column in (image_column, label_column):
            if row.get(column) in (None, ""):
                have = ", ".join(map(str, row))
                raise BadSample(f"expected a value in column '{column}', the columns are {have}", where=place)
        images.append(str(root / str(row[image_column])))
        names.append(row[label_column])
        places.append(place)
    labels, classes = number_classes(names, class_names, places)
    return LabelledImages(images, labels, classes, name=str(path), channels=channels, places=places)


def _subfolders(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir() if one.is_dir() and not one.name.startswith("."))


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(number of the line, its values by column)."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix == ".jsonl":
            yield from _json_rows(path, file)
            return
        reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        for row in reader:
            yield reader.line_num, row


def _json_rows(path: Path, lines: Any) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise BadSample(f"not JSON: {error}", where=f"{path}, line {number}") from error
        if not isinstance(row, dict):
            raise BadSample(f"expected an object, got {text.strip()[:40]}", where=f"{path}, line {number}")
        yield number, row
