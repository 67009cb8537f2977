"""Which conversations share a row: best fit by decreasing length, over a buffer of coming samples.

    look ahead    5 3 6 2 4 1 | 7 ...        rows of 8 tokens
    rows          6 2    5 3                 given out
    kept back     4 1                        the emptiest row waits for the next samples

Without packing (`like_lengths`), samples of similar length share a batch, and padding counts.

Only lengths are needed, so making a plan again is cheap: a resumed run makes the same plan and continues.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Packer(Generic[Item]):
    """Sorts a stream of items into rows of at most `capacity` tokens.

    Items without tokens (bad samples) take no room. They are in a row so that they are read and reported.

    Args:
        capacity: tokens per row.
        length: tokens of an item.
        look_ahead: items that are sorted into rows together; with more items the rows are fuller.
        multiple: rows come in multiples of this number (the rows of a step), except at the end.
        fit: (items, length, capacity) -> rows, the emptiest last: `best_fit` or `like_lengths`.

    Raises:
        ValueError: a capacity, look_ahead or multiple below 1; while packing, an item longer than a row.
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
        """The rows of each buffer in turn; every item is in exactly one row."""
        coming, kept_back = iter(items), list[Item]()
        while window := list(islice(coming, self.look_ahead)):
            rows = self.fit(kept_back + window, self.length, self.capacity)
            # The emptiest row always waits: its items may fit better with those of the next buffer.
            ready = (len(rows) - 1) // self.multiple * self.multiple
            kept_back = [item for row in rows[ready:] for item in row]
            if ready:
                yield rows[:ready]
        if kept_back:
            yield self.fit(kept_back, self.length, self.capacity)


def best_fit(items: Iterable[Item], length: Callable[[Item], int], capacity: int) -> list[list[Item]]:
    """Rows of at most `capacity` tokens, the fullest first.

    The longest item goes first. Each goes into the row where it leaves the least room.

    Raises:
        ValueError: an item longer than a row.
    """
    rows: list[list[Item]] = []
    rooms: list[tuple[int, int]] = []  # (tokens that still fit, row), sorted
    for item in sorted(items, key=length, reverse=True):
        tokens = _check_fits(length(item), capacity, "row", "pack_to")
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
    """Batches of items of similar length that take at most `capacity` positions when padded to the longest.

    Raises:
        ValueError: an item longer than that.
    """
    batches: list[list[Item]] = []
    longest = 0
    for item in sorted(items, key=length, reverse=True):
        tokens = _check_fits(length(item), capacity, "batch", "batch_tokens")
        # An item without tokens takes no room; all others are padded to the first of their batch.
        if not batches or (tokens and (len(batches[-1]) + 1) * longest > capacity):
            batches.append([])
            longest = tokens
        batches[-1].append(item)
    return batches


def _check_fits(tokens: int, capacity: int, container: str, option: str) -> int:
    if tokens > capacity:
        raise ValueError(
            f"a sample has {tokens} tokens, a {container} takes {option} = {capacity}: raise {option}, or "
            "lower the transform's max_seq_len to it"
        )
    return tokens


def padded_places(lengths: Sequence[int]) -> int:
    """Positions of a batch that is padded to its longest; items without tokens take none."""
    return max(lengths, default=0) * sum(1 for tokens in lengths if tokens)
