"""Records by number, left where they are: lines of JSONL, elements of a JSON array, rows of an Arrow table.

The `datasets` library cannot take every conversation file: Arrow gives a column one type, while `content` is
a string in one message and a list in the next. So JSON is indexed here: the offset and length of each record
are kept, the record itself is read and parsed when it is asked for.
"""

import bisect
import json
import re
import zlib
from array import array
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import datasets

from torchtune_qwenvl.transforms.errors import BadSample

_SPACE = re.compile(r"\s*")
_COMMA = re.compile(r"\s*,\s*|\s*(?=\])")


class Records(Protocol):
    """Records by number, each with its place."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any:
        """The record, parsed; raises :class:`BadSample` where it cannot be."""

    def where(self, index: int) -> str:
        """File and number of a record, for messages."""

    def folder(self, index: int) -> Path | None:
        """Folder of the file, from which relative image paths start; None where there is no file."""

    def fingerprint(self) -> object:
        """Something that changes when the records may have changed."""


class JsonRecords:
    """Records of one ``.jsonl`` file (one object a line, blank lines allowed) or ``.json`` file (one array).

    Args:
        path: the file, UTF-8.

    Raises:
        ValueError: an empty file, or a ``.json`` file that is no valid array, with line and column.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts, self._lengths, self._lines = array("q"), array("q"), array("q")
        index = _index_lines if path.suffix == ".jsonl" else _index_array
        for start, length, line in index(path):
            self._starts.append(start)
            self._lengths.append(length)
            self._lines.append(line)
        if not self._starts:
            raise ValueError(f"{path}: expected at least one record, the file has none")

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Any:
        with self.path.open("rb") as file:
            file.seek(self._starts[index])
            data = file.read(self._lengths[index])
        try:
            return json.loads(data)
        except ValueError as error:
            raise BadSample(f"not valid JSON: {error}", fix="correct or remove the line") from error

    def where(self, index: int) -> str:
        return f"{self.path}, sample {index} (from 0; line {self._lines[index]})"

    def folder(self, index: int) -> Path | None:
        return self.path.parent

    def fingerprint(self) -> object:
        status = self.path.stat()
        return str(self.path.resolve()), status.st_size, status.st_mtime_ns


class ArrowRecords:
    """Rows of a ``datasets.Dataset``, memory-mapped; images stay encoded bytes or paths.

    Args:
        table: the dataset.
        name: what messages call it.
        folder: from which relative image paths start.
    """

    def __init__(self, table: datasets.Dataset, name: str, folder: Path | None = None) -> None:
        # The arrow format hands out what is stored; a decoded image would escape our pixel limit.
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


class JoinedRecords:
    """Several sources one after the other; each keeps its own names and numbers."""

    def __init__(self, sources: Sequence[Records]) -> None:
        self._sources = list(sources)
        self._ends = list(accumulate(len(source) for source in sources))

    def _find(self, index: int) -> tuple[Records, int]:
        which = bisect.bisect_right(self._ends, index)
        return self._sources[which], index - (self._ends[which - 1] if which else 0)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Any:
        source, inner = self._find(index)
        return source[inner]

    def where(self, index: int) -> str:
        source, inner = self._find(index)
        return source.where(inner)

    def folder(self, index: int) -> Path | None:
        source, inner = self._find(index)
        return source.folder(inner)

    def fingerprint(self) -> object:
        return [source.fingerprint() for source in self._sources]


class SlicedRecords:
    """Some records of a source, named by their numbers in the source."""

    def __init__(self, source: Records, indices: Sequence[int]) -> None:
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Any:
        return self._source[self._indices[index]]

    def where(self, index: int) -> str:
        return self._source.where(self._indices[index])

    def folder(self, index: int) -> Path | None:
        return self._source.folder(self._indices[index])

    def fingerprint(self) -> object:
        return self._source.fingerprint(), zlib.crc32(array("q", self._indices).tobytes())


def without_absent(record: Any) -> Any:
    """A table's record without the entries that are None in objects inside it.

    Arrow gives every object of a column the keys of all of them, filled with None; a tool's parameters would
    be told to the model with the names of every other tool's.
    """
    return {column: _without_none(value) for column, value in record.items()}


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_none(inner) for inner in value]
    return value


def _index_lines(path: Path) -> Iterator[tuple[int, int, int]]:
    start = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            bom = 3 if number == 1 and line.startswith(b"\xef\xbb\xbf") else 0
            if line[bom:].strip():
                yield start + bom, len(line) - bom, number
            start += len(line)


def _index_array(path: Path) -> Iterator[tuple[int, int, int]]:
    """Offset, length (bytes) and line of each element, one parsed at a time."""
    data = path.read_bytes()
    bom = 3 if data.startswith(b"\xef\xbb\xbf") else 0
    if not data[bom:].strip():
        raise ValueError(f"{path}: expected a JSON array of records, the file is empty")
    try:
        text = data[bom:].decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8 text, {error}") from error
    del data
    if not text.lstrip().startswith("["):
        hint = " (one record a line belongs into a .jsonl file)" if text.lstrip().startswith("{") else ""
        raise ValueError(
            f"{path}: expected a JSON array of records, it starts with {text.lstrip()[:20]!r}{hint}"
        )
    try:
        yield from _elements(text, bom)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}: not a valid JSON array, perhaps truncated: {error}; correct the file"
        ) from error


def _elements(text: str, bom: int) -> Iterator[tuple[int, int, int]]:
    decoder = json.JSONDecoder()
    place, offset, line = 0, bom, 1

    def advance(end: int) -> None:
        nonlocal place, offset, line
        offset += len(text[place:end].encode())
        line += text.count("\n", place, end)
        place = end

    advance(_SPACE.match(text, text.index("[") + 1).end())  # type: ignore[union-attr]
    while not text.startswith("]", place):
        _, end = decoder.raw_decode(text, place)
        start, first_line = offset, line
        advance(end)
        yield start, offset - start, first_line
        gap = _COMMA.match(text, place)
        if gap is None:
            raise json.JSONDecodeError("Expecting ',' or ']'", text, place)
        advance(gap.end())
    if text[place + 1 :].strip():
        raise json.JSONDecodeError("Text after the array", text, place + 1)
