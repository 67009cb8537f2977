"""How the records of a stream become batches: window by window, each shuffled and packed for itself.

stream     a b c d e f | g h i j k l | ...      windows: as many records as the buffer takes, or 64 rows
window     c e a | f b d                        its batches, in random order
"""

import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from torchtune_qwenvl.data.order.mixture import seed_of
from torchtune_qwenvl.data.order.packing import best_fit, like_lengths
from torchtune_qwenvl.data.samples import Item, sample_size
from torchtune_qwenvl.data.streams.dataset import Streamed
from torchtune_qwenvl.data.streams.stream import Share, State
from torchtune_qwenvl.transforms.size import SampleSize

MOST_AHEAD = 16384  # records in a window at most, however few tokens they have
# Of a sampler's state, what stands for: no window is open.
AT_ITS_START: State = {"batches": 0, "done": 0, "window": None, "made": None, "earlier": []}

Measured = tuple[Item, SampleSize]
_UNMEASURED = SampleSize(0, 0)


@dataclass(frozen=True)
class Windows:
    """How records become batches.

    Attributes:
        batch_size: samples per batch; with `capacity` rows.
        buffer: records that are shuffled together.
        capacity: tokens per row; None does not pack, so nothing is measured.
        padded: do not pack but pad, see `PackedSampler`.
        look_ahead: how many rows the records of a window fill at least.
    """

    batch_size: int
    buffer: int
    capacity: int | None = None
    padded: bool = False
    look_ahead: int = 64


Stage = tuple[Windows, int]


def stages_of(state: State) -> list[Stage]:
    """How the batches of the window that a sampler's state leaves open were made, and how many of each kind
    are done; empty if none is open."""
    if state["made"] is None:
        return []
    pairs = [*state["earlier"], (state["made"], state["done"])]
    return [(Windows(**made), done) for made, done in pairs]


class WindowMaker:
    """Makes windows of records, and batches of windows, the same ones whenever it is asked.

    Args:
        dataset: measures items that are packed.
        share: of the process whose batches they are.
        work: (tokens, patches) of a sample -> its work, in any unit.
        number: of the pass.
    """

    def __init__(
        self, dataset: Streamed, share: Share, work: Callable[[int, int], float], number: int
    ) -> None:
        self.dataset, self.share, self.work, self.number = dataset, share, work, number

    def window(self, records: Iterator[Item], ours: Windows, expected: int | None) -> list[Measured]:
        """The next records, measured if they will be packed; fewer or none at the end.

        Args:
            records: of the share.
            ours: how large the window is.
            expected: `digest` of a window that was read here before.

        Raises:
            ValueError: another window is read now.
        """
        window = self._next(records, ours)
        if window and expected not in (None, digest(window)):
            raise ValueError(
                "the stream does not give what it gave in the run that is resumed: data, their order, "
                "max_seq_len or seed differ; resume with those of that run"
            )
        return window

    def left(
        self, window: list[Measured], number: int, stages: Sequence[Stage]
    ) -> tuple[list[list[Measured]], int]:
        """The batches of a window that are not done, as the last stage makes them; number of the first.

        Args:
            window: the records.
            number: batches of this pass before the window.
            stages: how its batches were made, and how many of each kind are done.
        """
        batches: list[list[Measured]] = []
        for stage, (made, done) in enumerate(stages):
            batches = self._batches(window, number, made, first=stage == 0)[done:]
            window = [measured for batch in batches for measured in batch]
            number += done
        return batches, number

    def _next(self, records: Iterator[Item], ours: Windows) -> list[Measured]:
        batch_size = ours.batch_size
        if ours.capacity is None:
            n = -(-ours.buffer // batch_size) * batch_size
            return [(item, _UNMEASURED) for item in islice(records, n)]
        window: list[Measured] = []
        tokens, enough = 0, max(ours.look_ahead, batch_size) * ours.capacity
        for item in islice(records, max(ours.buffer, MOST_AHEAD)):
            window.append((item, sample_size(self.dataset, item)))
            tokens += window[-1][1].tokens
            if len(window) >= ours.buffer and tokens >= enough:
                break
        return window

    def _batches(
        self, window: list[Measured], number: int, ours: Windows, first: bool = True
    ) -> list[list[Measured]]:
        """All batches of records; the first is batch `number` of the pass.

        Args:
            window: the records.
            number: batches of this pass before these.
            ours: how batches are made.
            first: False for what is left of a window whose records are shuffled already.
        """
        batch_size = ours.batch_size
        if ours.capacity is None:
            records = list(window)
            if self.share.shuffle and first:
                random.Random(seed_of("window", self.share.seed, self.number, number)).shuffle(records)
            return [records[at : at + batch_size] for at in range(0, len(records), batch_size)]
        fit = like_lengths if ours.padded else best_fit
        measured = [self._measured(pair) for pair in window]
        rows = fit(measured, lambda pair: pair[1].tokens, ours.capacity)
        rows.sort(key=lambda row: -sum(self.work(*size) for _, size in row))
        groups = [rows[at : at + batch_size] for at in range(0, len(rows), batch_size)]
        if self.share.shuffle:
            groups = [groups.pop(int(self._chance(number + i) * len(groups))) for i in range(len(groups))]
        return [[pair for row in group for pair in row] for group in groups]

    def _measured(self, pair: Measured) -> Measured:
        return (pair[0], sample_size(self.dataset, pair[0])) if pair[1] is _UNMEASURED else pair

    def _chance(self, number: int) -> float:
        """A random number for batch `number`, the same on all ranks, whatever their windows hold."""
        return random.Random(seed_of("batch", self.share.seed, self.number, number)).random()


def digest(window: list[Measured]) -> int:
    """A number that tells a window from another."""
    return zlib.crc32(repr([(item.number, item.member, size) for item, size in window]).encode())
