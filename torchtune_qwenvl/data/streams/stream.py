"""What a stream is: a source of records that are read one after the other, from any place on.

A stream opens as a cursor over the share of one process. A cursor's state is small, consists of plain numbers
and strings, and marks the place after the last record. The next cursor continues from there without reading
what comes before (files, parquet), or reads and drops it (iterables that have no state).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torchtune_qwenvl.data.order.mixture import pass_order, seed_of
from torchtune_qwenvl.data.samples import Item

State = dict[str, Any]


@dataclass(frozen=True)
class Share:
    """Which part of a stream a process reads, and in which order files or numbers come.

    Attributes:
        rank: reads every `world_size`-th record, or its share of the files.
        world_size: number of shares.
        seed: of the order.
        shuffle: whether there is one.
        together: other shares are read in turns with it in the same process.
    """

    rank: int = 0
    world_size: int = 1
    seed: int = 0
    shuffle: bool = True
    together: bool = False

    def order(self, n: int, number: int) -> list[int]:
        """The numbers 0 to n - 1 in the order of a pass, the same on all ranks."""
        return pass_order(n, seed_of("stream", self.seed, number), self.shuffle).tolist()


class Cursor(Protocol):
    """Gives the records of one pass over a stream."""

    def __iter__(self) -> Iterator[Item]: ...

    def __next__(self) -> Item: ...

    def state_dict(self) -> State:
        """The place after the last record."""


class Stream(Protocol):
    """A source of records that can be read again and again."""

    def open(self, share: Share, number: int, state: State | None = None) -> Cursor:
        """A cursor over the share of a process in pass `number` (from 0).

        Args:
            share: of the process.
            number: of the pass.
            state: a place in that pass; None is its start.
        """


class CursorBase(ABC):
    """A cursor over a generator that sets `_state` before it yields a record.

    At the end the state is empty, so that the next pass opens at its start.
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
        """The records; before each, `_state` is set to the place after it."""
