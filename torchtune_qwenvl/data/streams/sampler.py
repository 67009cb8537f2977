"""Batches of a stream: shuffled and packed window by window, resumable after any batch.

    stream     a b c d e f | g h i j k l | ...      windows: as many records as the buffer takes, or 64 rows
    window     c e a | f b d                        its batches, in random order
    state      the place before the window, and how many of its batches are done

The buffer is never saved. A resumed run reads the window again from its start, makes the same batches and
leaves out those that were done. If its batches are to be of another size, it makes new ones of the records
that are left of the window; `earlier` lists how its batches were made before. No image is decoded for that.
One process reads, measures and packs; only it needs the stream. The data workers make samples of the items it
sends, so their number changes nothing.

Ranks read different records, and none knows the others' lengths. But all ranks sort the batches of their
window by work and draw the same random numbers, so each takes the batch at the same rank in its own order.
Batches that run at the same time are therefore of similar size.
"""

import random
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from torchtune_qwenvl.data.order.mixture import seed_of
from torchtune_qwenvl.data.order.packed_sampler import tokens_as_work
from torchtune_qwenvl.data.order.packing import best_fit, like_lengths
from torchtune_qwenvl.data.samples import Item, sample_size
from torchtune_qwenvl.data.streams.dataset import Streamed
from torchtune_qwenvl.data.streams.stream import Cursor, Share, State
from torchtune_qwenvl.data.workers import started, worker_options
from torchtune_qwenvl.transforms.size import SampleSize

MOST_AHEAD = 16384  # records in a window at most, however few tokens they have

_AT_ITS_START: State = {"batches": 0, "done": 0, "window": None, "made": None, "earlier": []}

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


class StreamSampler:
    """Yields this rank's batches of items. Epochs continue the stream; after its end it begins again.

    Args:
        dataset: a `Streamed` dataset.
        share: of this rank.
        buffer: records that are shuffled together; 1 keeps the stream's order.
        pack_to: tokens per row; None does not pack.
        padded: do not pack but put samples of similar length into a batch, see `PackedSampler`.
        work: (tokens, patches) of a sample -> its work, in any unit.
        look_ahead: how many rows are packed together at least.
        in_process: True reads in a separate process, False in this one.

    Raises:
        ValueError: an empty buffer.
    """

    def __init__(
        self,
        dataset: Streamed,
        share: Share,
        *,
        buffer: int = 1000,
        pack_to: int | None = None,
        padded: bool = False,
        work: Callable[[int, int], float] = tokens_as_work,
        look_ahead: int = 64,
        in_process: bool = True,
    ) -> None:
        if buffer < 1:
            raise ValueError(f"shuffle_buffer: expected at least 1 sample, got {buffer}")
        self.dataset, self.share, self.in_process = dataset, share, in_process
        self.padded, self.work = padded, work
        self.windows = Windows(1, buffer if share.shuffle else 1, pack_to, padded, look_ahead)
        self._after: State = {"pass": 0, "cursor": None, "ended": False, **_AT_ITS_START}

    def set_batch_size(self, batch_size: int) -> None:
        """Samples, or rows, per batch; with `padded` a batch is one row."""
        if batch_size < 1:
            raise ValueError(f"expected a batch size of at least 1, got {batch_size}")
        self.windows = replace(self.windows, batch_size=1 if self.padded else batch_size)

    def begin_epoch(self, epoch: int, after: Mapping[str, Any]) -> None:
        """Continue where the previous epoch stopped; after the stream's end, begin it again."""
        self.load_state_dict(after)
        if after["ended"]:
            self._after |= {"pass": after["pass"] + 1, "ended": False, **_AT_ITS_START}

    def state_dict(self) -> State:
        """The place after the last batch."""
        return dict(self._after)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where `state_dict` was taken."""
        self._after = dict(state)

    def __len__(self) -> int:
        raise ValueError(
            "a streamed dataset has no length: set max_steps_per_epoch, the number of optimizer steps after "
            "which an epoch ends if the stream has not ended before"
        )

    def __str__(self) -> str:
        rows = "batches of at most {} tokens with padding" if self.padded else "rows of {} tokens"
        packed = f", packed into {rows.format(self.windows.capacity)}" if self.windows.capacity else ""
        return f"a stream{packed}, shuffled by {self.windows.buffer} samples or more"

    def __iter__(self) -> Iterator[list[Item] | list[ValueError]]:
        """This rank's batches. If the stream breaks off, the last one holds the error."""
        reader = DataLoader(
            _Batches(self.dataset, self.share, self.windows, self.work, self._after),
            batch_size=None,
            collate_fn=_as_it_is,
            **worker_options(int(self.in_process)),
        )
        for items, after in started(reader):
            self._after = after
            yield items
        self._after["ended"] = True


class _Batches(IterableDataset):
    """(batch, state after it) from a state to the end of the pass; an error comes as the last batch."""

    def __init__(
        self,
        dataset: Streamed,
        share: Share,
        windows: Windows,
        work: Callable[[int, int], float],
        state: State,
    ) -> None:
        self.dataset, self.share, self.windows, self.work = dataset, share, windows, work
        self.state = state

    def __iter__(self) -> Iterator[tuple[list[Any], State]]:
        if self.state["ended"]:
            return
        cursor = self.dataset.open(self.share, self.state["pass"], self.state["cursor"])
        # One batch is held back: the last one must be marked as the last, for ranks that wait for another.
        held: tuple[list[Any], State] | None = None
        try:
            for following in self._read(cursor):
                if held is not None:
                    yield held
                held = following
        except ValueError as error:
            if held is not None:
                yield held
            yield [ValueError(str(error))], self.state
            return
        if held is not None:
            batch, state = held
            yield batch, {**state, **_AT_ITS_START, "cursor": cursor.state_dict(), "ended": True}

    def _read(self, cursor: Cursor) -> Iterator[tuple[list[Item], State]]:
        records = self._records(cursor)
        number, expected = self.state["batches"], self.state["window"]
        stages = self._stages()
        while True:
            place = cursor.state_dict()
            window = self._window(records, stages[0][0])
            if not window:
                return
            digest = zlib.crc32(repr([(item.number, item.member, size) for item, size in window]).encode())
            if expected not in (None, digest):
                raise ValueError(
                    "the stream does not give what it gave in the run that is resumed: data, their order, "
                    "max_seq_len or seed differ; resume with those of that run"
                )
            before = {"cursor": place, "batches": number, "window": digest}
            for stage, (made, done) in enumerate(stages):
                batches = self._batches(window, number, made, first=stage == 0)
                window = [measured for batch in batches[done:] for measured in batch]
                number += done
            how = {"made": asdict(made), "earlier": [(asdict(old), n) for old, n in stages[:-1]]}
            for i, batch in enumerate(batches[done:], start=done + 1):
                after = {"pass": self.state["pass"], "ended": False, **before, "done": i, **how}
                yield [item for item, _ in batch], after
            number, expected, stages = number + len(batches) - done, None, [(self.windows, 0)]

    def _stages(self) -> list[tuple[Windows, int]]:
        """How the batches of the open window were made, and how many of each kind are done."""
        if self.state["made"] is None:
            return [(self.windows, 0)]
        pairs = [*self.state["earlier"], (self.state["made"], self.state["done"])]
        stages = [(Windows(**made), done) for made, done in pairs]
        return stages if stages[-1][0] == self.windows else [*stages, (self.windows, 0)]

    def _records(self, cursor: Cursor) -> Iterator[Item]:
        place = "its start"
        try:
            for item in cursor:
                place = item.where
                yield item
        except Exception as error:  # a network, a file system or a user's iterable can raise anything
            raise ValueError(
                f"the stream broke off after {place}: {type(error).__name__}: {error}; everything before it "
                "has been trained on. Repair the source, then continue from the last step_N folder with "
                "resume=true"
            ) from error

    def _window(self, records: Iterator[Item], ours: Windows) -> list[Measured]:
        """The next records, measured if they will be packed; fewer or none at the end."""
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
                random.Random(seed_of("window", self.share.seed, self.state["pass"], number)).shuffle(records)
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
        return random.Random(seed_of("batch", self.share.seed, self.state["pass"], number)).random()


def _as_it_is(value: Any) -> Any:
    return value
