"""What is left of a stream for another number of ranks: the shares of the ranks before, each from its place.

    2 ranks have read to c and d      lane 0: e g i k …     lane 1: f h j l …
    3 ranks read on                   rank 0: e l …         rank 1: f g …         rank 2: h i …

A lane is what a rank of before has left: first what it had in its open window, then the rest of its share.
Record j of lane i of n goes to rank (i + j n) modulo the ranks, so to one rank whatever the others read.
A rank opens only the lanes that have records for it. At the end of the pass all is shared out anew; only a
mix, whose members do not end together, keeps its lanes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from torchtune_qwenvl.data.samples import Item
from torchtune_qwenvl.data.streams.dataset import Streamed
from torchtune_qwenvl.data.streams.stream import Cursor, Share, State
from torchtune_qwenvl.data.streams.windows import AT_ITS_START, WindowMaker, stages_of

Work = Callable[[int, int], float]
LANES = "lanes"


def open_share(dataset: Streamed, share: Share, number: int, state: State | None, work: Work) -> Cursor:
    """A cursor over a share in pass `number`, or over its lanes if its place is in these.

    Args:
        dataset: the stream.
        share: of this rank.
        number: of the pass.
        state: a cursor's place; None is the start of the pass.
        work: (tokens, patches) of a sample -> its work, in any unit.
    """
    if state and LANES in state:
        return LanesCursor(dataset, share, number, state, work)
    return dataset.open(share, number, state)


def read_on(states: Sequence[State], share: Share) -> State:
    """The place from which a rank reads on, as a sampler's state.

    Args:
        states: of the samplers of all ranks before.
        share: of a rank now.
    """
    n = len(states)
    every = math.gcd(n, share.world_size)
    number = max(state["pass"] for state in states)
    lanes: list[State] = [
        {"share": [place, n], "state": dict(state), "taken": 0, "read": 0}
        for place, state in enumerate(states)
        if place % every == share.rank % every
    ]
    ended = all(lane["state"]["ended"] and lane["state"]["pass"] == number for lane in lanes)
    goes_on = not ended or any(lane["state"]["cursor"] for lane in lanes)
    cursor = {LANES: lanes, "turn": 0} if goes_on else None
    return {"pass": number, "cursor": cursor, "ended": ended, **AT_ITS_START}


class LanesCursor:
    """The records of several lanes that are this rank's, in turns.

    Args:
        dataset: the stream.
        share: of this rank.
        number: of the pass; lanes that are behind are read through the passes before it.
        state: of `state_dict`.
        work: (tokens, patches) of a sample -> its work, in any unit.
    """

    def __init__(self, dataset: Streamed, share: Share, number: int, state: State, work: Work) -> None:
        together = share.together or len(state[LANES]) > 1
        shares = [
            replace(share, rank=lane["share"][0], world_size=lane["share"][1], together=together)
            for lane in state[LANES]
        ]
        self._lanes = [
            _Lane(dataset, theirs, number, lane, work)
            for theirs, lane in zip(shares, state[LANES], strict=True)
        ]
        self._share, self._turn = share, state["turn"]
        self._left = set(range(len(self._lanes)))

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        while self._left:
            turn = self._turn
            self._turn = (turn + 1) % len(self._lanes)
            if turn in self._left:
                item = self._lanes[turn].next_of(self._share)
                if item is not None:
                    return item
                self._left.remove(turn)
        raise StopIteration

    def state_dict(self) -> State:
        """The place after the last record; empty at the end, if the next pass begins at its start."""
        lanes = [lane.state_dict() for lane in self._lanes]
        if not self._left and not any(lane["state"]["cursor"] for lane in lanes):
            return {}
        return {LANES: lanes, "turn": self._turn}


class _Lane:
    def __init__(self, dataset: Streamed, share: Share, number: int, saved: State, work: Work) -> None:
        self._dataset, self._share, self._number, self._work = dataset, share, number, work
        self._state: dict[str, Any] = saved["state"]
        self._cursor: Cursor | None = None  # whose place counts; in an open window the state's does
        self._taken, self._read = saved["taken"], saved["read"]
        self._items = self._records()

    def next_of(self, share: Share) -> Item | None:
        """The lane's next record that is of a rank's share, or None at the end."""
        for item in self._items:
            place = self._share.rank + self._read * self._share.world_size
            self._read += 1
            if place % share.world_size == share.rank:
                return item
        return None

    def state_dict(self) -> State:
        state = self._state if self._cursor is None else self._at(self._cursor.state_dict())
        place = [self._share.rank, self._share.world_size]
        return {"share": place, "state": state, "taken": self._taken, "read": self._read}

    def _at(self, cursor: State | None, ended: bool = False) -> State:
        return {**self._state, **AT_ITS_START, "cursor": cursor, "ended": ended}

    def _records(self) -> Iterator[Item]:
        while True:
            if not self._state["ended"]:
                yield from self._rest_of_pass()
            if self._state["pass"] >= self._number:
                return
            self._state = {**self._state, "pass": self._state["pass"] + 1, "ended": False}

    def _rest_of_pass(self) -> Iterator[Item]:
        number = self._state["pass"]
        cursor = open_share(self._dataset, self._share, number, self._state["cursor"], self._work)
        records = (item for item in cursor)  # which stays at its end: the cursor of a mix would begin again
        for item in self._open_window(records, number)[self._taken :]:
            self._taken += 1
            yield item
        self._taken, self._cursor = 0, cursor
        yield from records
        self._state, self._cursor = self._at(cursor.state_dict(), ended=True), None

    def _open_window(self, records: Iterator[Item], number: int) -> list[Item]:
        """What is left of the window that the rank had open; the records go on after it."""
        stages = stages_of(self._state)
        if not stages:
            return []
        maker = WindowMaker(self._dataset, self._share, self._work, number)
        window = maker.window(records, stages[0][0], self._state["window"])
        batches, _ = maker.left(window, self._state["batches"], stages)
        return [item for batch in batches for item, _ in batch]
