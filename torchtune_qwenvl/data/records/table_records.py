"""Records of an Arrow table: the rows of a ``datasets.Dataset``."""

from pathlib import Path
from typing import Any

import datasets


class ArrowRecords:
    """Rows of a ``datasets.Dataset``, memory-mapped; images stay encoded bytes or paths.

    Args:
        table: the dataset.
        name: for messages.
        folder: that relative image paths start from.
    """

    def __init__(self, table: datasets.Dataset, name: str, folder: Path | None = None) -> None:
        # The arrow format gives what is stored; an image decoded by `datasets` would bypass our pixel limit.
        self._table = table.with_format("arrow")
        self._name, self._folder = name, folder

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Any:
        return without_absent(self._table[index : index + 1].to_pylist()[0])

    def where(self, index: int) -> str:
        return f"{self._name}, sample {index} (from 0)"

    def folder(self, index: int) -> Path | None:
        return self._folder

    def fingerprint(self) -> object:
        return self._table._fingerprint


def without_absent(record: Any) -> Any:
    """A table's record without the entries that are None in objects inside it.

    Arrow gives every object of a column the keys of all of them, filled with None. Without this, the model
    would see each tool with the parameter names of every other tool.
    """
    return {column: _without_none(value) for column, value in record.items()}


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_none(inner) for inner in value]
    return value
