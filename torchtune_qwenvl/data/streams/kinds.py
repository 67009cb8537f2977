"""The kinds of streams: lines of files, tables of `datasets`, any iterable, and numbered records."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
from datasets.distributed import split_dataset_by_node

from torchtune_qwenvl.data.order.mixture import seed_of
from torchtune_qwenvl.data.records.records import Records
from torchtune_qwenvl.data.records.table_records import without_absent
from torchtune_qwenvl.data.samples import Item
from torchtune_qwenvl.data.streams.stream import Cursor, CursorBase, Share, State


@dataclass(frozen=True)
class LinesStream:
    """Lines of ``.jsonl`` files, read without an index. A process takes every world_size-th line.

    Args:
        files: read one after the other, in a new order for each pass if shuffled.
    """

    files: Sequence[Path]

    def open(self, share: Share, number: int, state: State | None = None) -> Cursor:
        """See `Stream`."""
        start = {"file": 0, "offset": 0, "line": 0, "records": 0}
        return _LinesCursor(self.files, share, number, state or start)


class _LinesCursor(CursorBase):
    def __init__(self, files: Sequence[Path], share: Share, number: int, state: State) -> None:
        self._files = [files[i] for i in share.order(len(files), number)]
        self._share = share
        super().__init__(state)

    def _read(self) -> Iterator[Item]:
        at, offset, line, records = (self._state[key] for key in ("file", "offset", "line", "records"))
        for number, path in enumerate(self._files[at:], start=at):
            if offset > path.stat().st_size:
                raise ValueError(
                    f"{path} is shorter than when the run that is resumed read it: restore the file, or "
                    "start a new run"
                )
            with path.open("rb") as file:
                file.seek(offset)
                for content in file:
                    offset, line = offset + len(content), line + 1
                    content = content.removeprefix(b"\xef\xbb\xbf") if line == 1 else content
                    if not content.strip():
                        continue
                    records += 1
                    if (records - 1) % self._share.world_size == self._share.rank:
                        self._state = {"file": number, "offset": offset, "line": line, "records": records}
                        yield Item(content, records - 1, f"{path}, line {line}", path.parent)
            offset = line = 0


@dataclass(frozen=True)
class TableStream:
    """A ``datasets.IterableDataset``: anything that ``datasets.load_dataset(streaming=True)`` reads.

    `datasets` gives each process its share: whole files if there are enough of them, otherwise single
    records. It also shuffles the order of the files.

    Args:
        table: its images are not decoded.
        name: for messages.
        folder: that relative image paths start from.
    """

    table: datasets.IterableDataset
    name: str
    folder: Path | None = None

    def open(self, share: Share, number: int, state: State | None = None) -> Cursor:
        """See `Stream`."""
        return _TableCursor(self, share, number, state)


class _TableCursor(CursorBase):
    def __init__(self, stream: TableStream, share: Share, number: int, state: State | None) -> None:
        table = stream.table.decode(False) if stream.table.features is not None else stream.table
        self._table = split_dataset_by_node(table, share.rank, share.world_size)
        # The order of the files is shuffled by this number, unless it is 0.
        self._table.set_epoch(1 + seed_of(share.seed, number) % 2**31 if share.shuffle else 0)
        if state:
            self._table.load_state_dict(state["table"])
        self._stream, self._share = stream, share
        super().__init__(state or {"records": 0})

    def _read(self) -> Iterator[Item]:
        share = f" of process {self._share.rank}" if self._share.world_size > 1 else ""
        for number, record in enumerate(self._table, start=self._state["records"]):
            self._state = {"records": number + 1}
            where = f"{self._stream.name}, sample {number}{share} (from 0)"
            yield Item(without_absent(record), number, where, self._stream.folder)

    def state_dict(self) -> State:
        # Made only when asked for, since it is a deep copy.
        return {**self._state, "table": self._table.state_dict()} if self._state.get("records") else {}


@dataclass(frozen=True)
class AnyStream:
    """Any iterable that begins again with each `iter`, such as a ``torch.utils.data.IterableDataset``.

    Every process reads all of it and keeps every world_size-th record. If it has torchdata's ``state_dict``
    and ``load_state_dict``, a resumed run returns to its place directly; otherwise the records before it are
    read and dropped. If it has ``set_epoch``, that is called with the number of the pass. This class is the
    only place that asks for these methods.

    Args:
        iterable: gives records, or finished samples.
        name: for messages.
    """

    iterable: Iterable[Any]
    name: str

    def open(self, share: Share, number: int, state: State | None = None) -> Cursor:
        """See `Stream`."""
        return _AnyCursor(self, share, number, state)


class _AnyCursor(CursorBase):
    def __init__(self, stream: AnyStream, share: Share, number: int, state: State | None) -> None:
        self._source: Any = stream.iterable
        self._stream, self._share = stream, share
        self._stateful = hasattr(self._source, "state_dict") and hasattr(self._source, "load_state_dict")
        if hasattr(self._source, "set_epoch"):
            self._source.set_epoch(number)
        super().__init__(state or {"records": 0})

    def _read(self) -> Iterator[Item]:
        done = self._state["records"]
        if done and self._stateful:
            self._source.load_state_dict(self._state["source"])
        rows = iter(self._source)
        for number, record in enumerate(rows if self._stateful else islice(rows, done, None), start=done):
            self._state = {"records": number + 1}
            if number % self._share.world_size == self._share.rank:
                yield Item(record, number, f"{self._stream.name}, sample {number} (from 0)")

    def state_dict(self) -> State:
        if self._stateful and self._state.get("records") and "source" not in self._state:
            return {**self._state, "source": self._source.state_dict()}
        return dict(self._state)


@dataclass(frozen=True)
class NumberedStream:
    """Numbered records as a stream, shuffled as a whole, so that they can be mixed with streams.

    Args:
        records: become the items' records; with None, the numbers do.
        n: number of records.
    """

    records: Records | None
    n: int

    def open(self, share: Share, number: int, state: State | None = None) -> Cursor:
        """See `Stream`."""
        return _NumberedCursor(self, share, number, state or {"records": 0})


class _NumberedCursor(CursorBase):
    def __init__(self, stream: NumberedStream, share: Share, number: int, state: State) -> None:
        self._stream = stream
        self._order = share.order(stream.n, number)[share.rank :: share.world_size]
        super().__init__(state)

    def _read(self) -> Iterator[Item]:
        records = self._stream.records
        done = self._state["records"]
        for at, number in enumerate(self._order[done:], start=done + 1):
            self._state = {"records": at}
            if records is None:
                yield Item(number, number, "")
            else:
                yield Item(_read(records, number), number, records.where(number), records.folder(number))


def _read(records: Records, number: int) -> Any:
    """The record, or the error of reading it: that belongs to this sample, and must not end the stream."""
    try:
        return records[number]
    except Exception as error:
        return error


def common_folder(files: Sequence[Path]) -> Path | None:
    """The folder of the files, or None if they are in several."""
    folders = {file.parent for file in files}
    return folders.pop() if len(folders) == 1 else None


def name_of(source: Any) -> str:
    """The name of a source, for messages."""
    return os.fspath(source) if isinstance(source, (str, os.PathLike)) else type(source).__name__
