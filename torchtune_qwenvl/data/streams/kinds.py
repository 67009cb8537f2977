"""The kinds of streams: lines, what `datasets` streams, any iterable, and records that have numbers."""

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
    """Lines of ``.jsonl`` files, without an index; a process takes every world_size-th line.

    Args:
        files: read one after the other, in an order of its own for each pass where shuffled.
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
                raise ValueError(f"{path} is shorter than it was when the run that is resumed read it")
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

    Its files are shared out where there are enough of them, else its records; both by `datasets` itself,
    which also shuffles the order of the files.

    Args:
        table: images stay as they are stored.
        name: what messages call it.
        folder: from which relative image paths start.
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
        # Asked for only where it is needed: a copy of all its levels.
        return {**self._state, "table": self._table.state_dict()} if self._state.get("records") else {}


@dataclass(frozen=True)
class AnyStream:
    """Any iterable that begins anew with each `iter`: a ``torch.utils.data.IterableDataset``, for one.

    Every process goes through all of it and takes every world_size-th record. Where it has torchdata's
    ``state_dict`` and ``load_state_dict`` it is set back to its place, else what lies before is read and
    dropped. Where it has ``set_epoch`` it is told the number of the pass.

    Args:
        iterable: gives records, or finished samples.
        name: what messages call it.
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
    """Records that do have numbers, as a stream: shuffled as a whole, for a place beside streams in a mix.

    Args:
        records: given out as they are; None gives out the numbers, of which there are `n`.
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
                yield Item(records[number], number, records.where(number), records.folder(number))


def common_folder(files: Sequence[Path]) -> Path | None:
    """The folder of the files, if it is one."""
    folders = {file.parent for file in files}
    return folders.pop() if len(folders) == 1 else None


def name_of(source: Any) -> str:
    """What messages call a source."""
    return os.fspath(source) if isinstance(source, (str, os.PathLike)) else type(source).__name__
