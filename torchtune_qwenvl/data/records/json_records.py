"""Records of JSON and JSONL files, read from the file by number. Only an index is kept in memory.

The `datasets` library cannot read every conversation file: Arrow gives a column one type, but `content` is a
string in one message and a list in the next. So JSON is indexed here. The offset and length of each record
are kept; the record itself is read and parsed when it is asked for.
"""

import json
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torchtune_qwenvl.data.records.text import parse_json

_SPACE = re.compile(r"\s*")
_COMMA = re.compile(r"\s*,\s*|\s*(?=\])")


class Span(NamedTuple):
    """Where a record is in its file: offset and length in bytes, and the line it starts on, from 1."""

    start: int
    length: int
    line: int


class JsonRecords:
    """Records of one ``.jsonl`` file (one object a line, blank lines allowed) or ``.json`` file (one array).

    Args:
        path: the file, UTF-8.

    Raises:
        ValueError: an empty file, or a ``.json`` file that is not a valid array, with line and column.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts, self._lengths, self._lines = array("q"), array("q"), array("q")
        index = _index_lines if path.suffix == ".jsonl" else _index_array
        for span in index(path):
            self._starts.append(span.start)
            self._lengths.append(span.length)
            self._lines.append(span.line)
        if not self._starts:
            raise ValueError(f"{path}: expected at least one record, the file has none")

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> Any:
        with self.path.open("rb") as file:
            file.seek(self._starts[index])
            data = file.read(self._lengths[index])
        return parse_json(data)

    def where(self, index: int) -> str:
        return f"{self.path}, sample {index} (from 0; line {self._lines[index]})"

    def folder(self, index: int) -> Path | None:
        return self.path.parent

    def fingerprint(self) -> object:
        status = self.path.stat()
        return str(self.path.resolve()), status.st_size, status.st_mtime_ns


def _index_lines(path: Path) -> Iterator[Span]:
    start = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            bom = 3 if number == 1 and line.startswith(b"\xef\xbb\xbf") else 0
            if line[bom:].strip():
                yield Span(start + bom, len(line) - bom, number)
            start += len(line)


def _index_array(path: Path) -> Iterator[Span]:
    """The elements of the array, parsed one at a time."""
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
    except RecursionError as error:
        raise ValueError(f"{path}: JSON that is nested too deeply; correct the file") from error
    except ValueError as error:
        raise ValueError(
            f"{path}: not a valid JSON array, perhaps truncated: {error}; correct the file"
        ) from error


def _elements(text: str, bom: int) -> Iterator[Span]:
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
        yield Span(start, offset - start, first_line)
        gap = _COMMA.match(text, place)
        if gap is None:
            raise json.JSONDecodeError("Expecting ',' or ']'", text, place)
        advance(gap.end())
    if text[place + 1 :].strip():
        raise json.JSONDecodeError("Text after the array", text, place + 1)
