"""Batches of a stream: shuffled and packed window by window, resumable after any batch.

Its state is the place before the open window (see windows.py), and how many of its batches are done.

The buffer is never saved. A resumed run reads the window again from its start, makes the same batches and
leaves out those that were done. If its batches are to be of another size, it makes new ones of the records
that are left of the window; `earlier` lists how its batches were made before. No image is decoded for that.
One process reads, measures and packs; only it needs the stream. The data workers make samples of the items it
sends, so their number changes nothing.

Ranks read different records, and none knows the others' lengths. But all ranks sort the batches of their
window by work and draw the same random numbers, so each takes the batch at the same rank in its own order.
Batches that run at the same time are therefore of similar size.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from torchtune_qwenvl.data.order.packed_sampler import tokens_as_work
from torchtune_qwenvl.data.samples import Item
from torchtune_qwenvl.data.streams.dataset import Streamed
from torchtune_qwenvl.data.streams.lanes import LANES, open_share, read_on
from torchtune_qwenvl.data.streams.stream import Cursor, Share, State
from torchtune_qwenvl.data.streams.windows import AT_ITS_START, WindowMaker, Windows, digest, stages_of
from torchtune_qwenvl.data.workers import started, worker_options


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
        self._after: State = {"pass": 0, "cursor": None, "ended": False, **AT_ITS_START}

    def set_batch_size(self, batch_size: int) -> None:
        """Samples, or rows, per batch; with `padded` a batch is one row."""
        if batch_size < 1:
            raise ValueError(f"expected a batch size of at least 1, got {batch_size}")
        self.windows = replace(self.windows, batch_size=1 if self.padded else batch_size)

    def begin_epoch(self, epoch: int, after: Mapping[str, Any]) -> None:
        """Continue where the previous epoch stopped; after the stream's end, begin it again."""
        self.load_state_dict(after)
        if after["ended"]:
            self._after |= {"pass": after["pass"] + 1, "ended": False, **AT_ITS_START}

    def state_dict(self) -> State:
        """The place after the last batch."""
        return dict(self._after)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to where `state_dict` was taken, or where all ranks of another number of them were."""
        self._after = read_on(state["ranks"], self.share) if "ranks" in state else dict(state)

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
        place = self.state["cursor"]
        cursor = open_share(self.dataset, self.share, self.state["pass"], place, self.work)
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
        # Lanes can end without a record for this rank, and their end is where the next pass begins.
        if held is not None or (place and LANES in place):
            batch, state = held or ([], self.state)
            yield batch, {**state, **AT_ITS_START, "cursor": cursor.state_dict(), "ended": True}

    def _read(self, cursor: Cursor) -> Iterator[tuple[list[Item], State]]:
        records = self._records(cursor)
        number, expected = self.state["batches"], self.state["window"]
        maker = WindowMaker(self.dataset, self.share, self.work, self.state["pass"])
        stages = stages_of(self.state)
        if not stages or stages[-1][0] != self.windows:
            stages.append((self.windows, 0))
        while True:
            place = cursor.state_dict()
            window = maker.window(records, stages[0][0], expected)
            if not window:
                return
            before = {"cursor": place, "batches": number, "window": digest(window)}
            batches, number = maker.left(window, number, stages)
            made, done = stages[-1]
            how = {"made": asdict(made), "earlier": [(asdict(old), n) for old, n in stages[:-1]]}
            for i, batch in enumerate(batches, start=done + 1):
                after = {"pass": self.state["pass"], "ended": False, **before, "done": i, **how}
                yield [item for item, _ in batch], after
            number, expected, stages = number + len(batches), None, [(self.windows, 0)]

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


def _as_it_is(value: Any) -> Any:
    return value
