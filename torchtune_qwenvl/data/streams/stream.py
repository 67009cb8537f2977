"""Records one after the other, from any place on: what a source without numbered rows is read by.

A stream opens as a cursor over the share of one process. A cursor's state is small, made of plain numbers and
words, and tells where it stands behind the record that it gave last: the next cursor goes on from there
without reading what lies before (files, parquet), or reads and drops it (iterables without a state).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torchtune_qwenvl.data.order.mixture import pass_order, seed_of

State = dict[str, Any]


@dataclass(frozen=True)
class Item:
    """A record on its way to the process that makes a sample of it.

    Attributes:
        record: as the source gave it; a line of JSON is still bytes.
        number: of the record in the share of its process, from 0.
        where: file and line, for messages.
        folder: from which relative image paths start.
        member: which dataset of a mix it belongs to.
    """

    record: Any
    number: int
    where: str
    folder: Path | None = None
    member: int = 0


@dataclass(frozen=True)
class Share:
    """What a process reads of a stream, and in which order files or numbers come."""

    rank: int = 0
    world_size: int = 1
    seed: int = 0
    shuffle: bool = True

    def order(self, n: int, number: int) -> list[int]:
        """The numbers 0 to n - 1 in the order of a pass, the same on all ranks."""
        return pass_order(n, seed_of("stream", self.seed, number), self.shuffle).tolist()


class Cursor(Protocol):
    """Gives the records of one pass over a stream."""

    def __iter__(self) -> Iterator[Item]: ...

    def __next__(self) -> Item: ...

    def state_dict(self) -> State:
        """The place behind the last record."""


class Stream(Protocol):
    """A source of records that can be read again and again."""

    def open(self, share: Share, number: int, state: State | None = None) -> Cursor:
        """The share of a process, in pass `number` (from 0), from its start or from a state of that pass."""


class CursorBase(ABC):
    """A cursor over a generator that sets `_state` before it hands a record out.

    Behind the end the state is empty: with it, the next pass opens at its start.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._items = self._read()

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        try:
            return next(self._items)
        except StopIteration:
            self._state = {}
            raise

    def state_dict(self) -> State:
        return dict(self._state)

    @abstractmethod
    def _read(self) -> Iterator[Item]:
        """The records; `_state` is set before each to the place behind it."""
