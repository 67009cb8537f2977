"""Several sequences counted through as one: which of them holds a number, and where in it."""

from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate
from typing import NamedTuple


class Place(NamedTuple):
    """A number's place: in which sequence, and at which index of it."""

    part: int
    index: int


class Joined:
    """Finds numbers in sequences of known lengths.

    Example: lengths 3 and 2; number 3 is index 0 of part 1.

    Args:
        lengths: of the sequences, in order.
    """

    def __init__(self, lengths: Iterable[int]) -> None:
        self.ends = list(accumulate(lengths))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def find(self, number: int) -> Place:
        """The place of a number from 0 to `len(self) - 1`."""
        part = bisect_right(self.ends, number)
        return Place(part, number - (self.ends[part - 1] if part else 0))
