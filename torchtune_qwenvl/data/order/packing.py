"""Which conversations share a row: best fit by decreasing length, over a buffer of samples that lie ahead.

    look ahead    5 3 6 2 4 1 | 7 ...        rows of 8 tokens
    rows          6 2    5 3                 given out
    kept back     4 1                        the emptiest row waits for what comes next

Without packing, a batch's budget counts its padding, and samples of like length share a batch.

Only lengths are needed, so a plan costs nothing to make again: a resumed run makes the same one and goes on.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Packer(Generic[Item]):
    """Streams items into rows of at most `capacity` tokens.

    Items of no tokens (samples that turn out to be bad) take no room; their row reports them.

    Args:
        capacity: tokens per row.
        length: tokens of an item.
        look_ahead: items that are sorted into rows together; more of them fill rows better.
        multiple: rows come in multiples of this number, except at the end: the rows of a step.
        fit: (items, length, capacity) -> rows, of which the last is the emptiest: `best_fit`, `like_lengths`.

    Raises:
        ValueError: a row or a buffer of nothing; while packing, an item longer than a row.
    """

    def __init__(
        self,
        capacity: int,
        length: Callable[[Item], int],
        *,
        look_ahead: int = 4096,
        multiple: int = 1,
        fit: Callable[..., list[list[Item]]] | None = None,
    ) -> None:
        if min(capacity, look_ahead, multiple) < 1:
            raise ValueError(
                "expected capacity, look_ahead and multiple of at least 1, got "
                f"{capacity}, {look_ahead} and {multiple}"
            )
        self.capacity, self.length = capacity, length
        self.look_ahead, self.multiple = look_ahead, multiple
        self.fit = fit or best_fit

    def __call__(self, items: Iterable[Item]) -> Iterator[list[list[Item]]]:
        """The rows of one buffer after the other; every item is in exactly one row."""
        coming, kept_back = iter(items), list[Item]()
        while window := list(islice(coming, self.look_ahead)):
            rows = self.fit(kept_back + window, self.length, self.capacity)
            # The emptiest row always waits: in the next buffer its items still find better neighbours.
            ready = (len(rows) - 1) // self.multiple * self.multiple
            kept_back = [item for row in rows[ready:] for item in row]
            if ready:
                yield rows[:ready]
        if kept_back:
            yield self.fit(kept_back, self.length, self.capacity)


def best_fit(items: Iterable[Item], length: Callable[[Item], int], capacity: int) -> list[list[Item]]:
    """Rows of at most `capacity` tokens, the fullest first.

    The longest item goes first, each where the least room is left that it fits in.

    Raises:
        ValueError: an item longer than a row.
    """
    rows: list[list[Item]] = []
    rooms: list[tuple[int, int]] = []  # (tokens that still fit, row), sorted
    for item in sorted(items, key=length, reverse=True):
        tokens = length(item)
        if tokens > capacity:
            raise ValueError(
                f"a sample has {tokens} tokens, a row takes pack_to = {capacity}: raise pack_to, or "
                "lower the transform's max_seq_len to it"
            )
        at = bisect_left(rooms, (tokens, -1))
        if at < len(rooms):
            room, row = rooms.pop(at)
            rows[row].append(item)
        else:
            room, row = capacity, len(rows)
            rows.append([item])
        insort(rooms, (room - tokens, row))
    return [rows[row] for _, row in rooms]


def like_lengths(items: Iterable[Item], length: Callable[[Item], int], capacity: int) -> list[list[Item]]:
    """Batches of items of like length; padded to their longest they take at most `capacity` positions.

    Raises:
        ValueError: an item longer than that.
    """
    batches: list[list[Item]] = []
    longest = 0
    for item in sorted(items, key=length, reverse=True):
        tokens = length(item)
        if tokens > capacity:
            raise ValueError(
                f"a sample has {tokens} tokens, a batch takes batch_tokens = {capacity}: raise batch_tokens, "
                "or lower the transform's max_seq_len to it"
            )
        # An item of no tokens is none, and takes no room; the rest are as long as the first of their batch.
        if not batches or (tokens and (len(batches[-1]) + 1) * longest > capacity):
            batches.append([])
            longest = tokens
        batches[-1].append(item)
    return batches


def padded_places(lengths: Sequence[int]) -> int:
    """Positions of a batch that is padded to its longest; items of no tokens are left out of it."""
    return max(lengths, default=0) * sum(1 for tokens in lengths if tokens)
