"""Streams that another number of ranks reads on: each record once, in every pass."""

import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import islice
from threading import Lock
from typing import Any

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset, IterableDataset

from torchtune_qwenvl.data.order.sampler import of_ranks
from torchtune_qwenvl.data.streams.dataset import FinishedItems, Streamed, StreamedDataset, as_streamed
from torchtune_qwenvl.data.streams.mixed import MixedStream
from torchtune_qwenvl.data.streams.sampler import StreamSampler
from torchtune_qwenvl.data.streams.sources import open_stream
from torchtune_qwenvl.data.streams.stream import Share
from torchtune_qwenvl.transforms.size import SampleSize

N = 23
LAYOUTS: tuple[dict[str, Any], ...] = (
    {"batch_size": 1},
    {"batch_size": 3},
    {"batch_size": 2, "pack_to": 20},
    {"batch_size": 1, "pack_to": 30, "padded": True},
)
STAGE = st.tuples(st.integers(1, 4), st.sampled_from(LAYOUTS), st.integers(0, 4), st.booleans())


class Lengths(Dataset):
    """Sample i has 1 + i % 9 tokens."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def size(self, index: int) -> SampleSize:
        return SampleSize(1 + index % 9, 0)


class Stateful(IterableDataset):
    """N records, with the methods of torchdata's stateful datasets: it is at one place at a time."""

    at = 0

    def __iter__(self) -> Any:
        start, self.at = self.at, 0
        for self.at in range(start + 1, N + 1):
            yield {"number": self.at - 1}
        self.at = 0

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


def opened(source: Any) -> Streamed:
    return StreamedDataset(open_stream(source), FinishedItems())


def numbered(n: int = N) -> Streamed:
    return as_streamed(Lengths(n))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Callable[[], Streamed]]:
    """Each of N records; every rank opens its own."""
    folder = tmp_path_factory.mktemp("streams")
    for number, part in enumerate((range(9), range(9, N))):
        lines = "".join(json.dumps({"number": i}) + "\n" for i in part)
        (folder / f"{number}.jsonl").write_text(lines)
        table = datasets.Dataset.from_dict({"number": list(part)})
        table.to_parquet(folder / f"{number}.parquet", batch_size=4)
    return {
        "lines": lambda: opened([str(folder / "0.jsonl"), str(folder / "1.jsonl")]),
        "tables": lambda: opened([str(folder / "0.parquet"), str(folder / "1.parquet")]),
        "stateful": lambda: opened(Stateful()),
    }


def readers(
    source: Callable[[], Streamed], world: int, layout: dict[str, Any], shuffle: bool = True
) -> list[StreamSampler]:
    options = {"buffer": 7, "look_ahead": 3, "in_process": False, **layout}
    del options["batch_size"]
    made = [StreamSampler(source(), Share(rank, world, 3, shuffle), **options) for rank in range(world)]
    for one in made:
        one.set_batch_size(layout["batch_size"])
    return made


def go_on(ranks: list[StreamSampler], states: list[Any]) -> None:
    """Load what other ranks have saved, through JSON, as files hold plain values."""
    states = json.loads(json.dumps(states))
    for rank, one in enumerate(ranks):
        if states:
            one.load_state_dict(states[rank] if len(states) == len(ranks) else of_ranks(states))


def numbers(batch: Any) -> list[tuple[int, int]]:
    """(member, number) of each record."""
    found = []
    for item in batch:
        record = json.loads(item.record) if isinstance(item.record, bytes) else item.record
        found.append((item.member, record["number"] if isinstance(record, dict) else item.number))
    return found


def read_to_the_end(ranks: list[StreamSampler]) -> Counter:
    """All of the pass in which the furthest rank is."""
    seen: Counter = Counter()
    last = max(one.state_dict()["pass"] for one in ranks)
    for one in ranks:
        seen.update(number for batch in one for number in numbers(batch))
        while one.state_dict()["pass"] < last:
            one.begin_epoch(0, one.state_dict())
            seen.update(number for batch in one for number in numbers(batch))
    return seen


def check_each_once(source: Callable[[], Streamed], stages: list[Any]) -> None:
    seen: Counter = Counter()
    states: list[Any] = []
    for world, layout, batches, epoch_ends in stages:
        ranks = readers(source, world, layout)
        go_on(ranks, states)
        for rank, one in enumerate(ranks):
            if epoch_ends:  # those whose stream has ended begin it again
                one.begin_epoch(1, one.state_dict())
            for batch in islice(one, batches * (3, 1, 3, 1)[rank]):
                seen.update(numbers(batch))
        states = [one.state_dict() for one in ranks]
    ranks = readers(source, 2, LAYOUTS[1])
    go_on(ranks, states)
    seen += read_to_the_end(ranks)
    passes = max(one.state_dict()["pass"] for one in ranks) + 1
    assert seen == {(0, number): passes for number in range(N)}
    for one in ranks:
        one.begin_epoch(2, one.state_dict())
    assert read_to_the_end(ranks) == {(0, number): 1 for number in range(N)}


@settings(max_examples=80, deadline=None)
@given(stages=st.lists(STAGE, min_size=1, max_size=4))
def test_each_record_once_in_every_pass(stages: list[Any]) -> None:
    check_each_once(numbered, stages)


@pytest.mark.parametrize("kind", ["lines", "tables", "stateful"])
@pytest.mark.parametrize("worlds", [(1, 2), (2, 1), (3, 2, 1), (2, 4, 3)], ids=str)
def test_each_record_once_of_every_kind(
    sources: dict[str, Callable[[], Streamed]], kind: str, worlds: tuple[int, ...]
) -> None:
    check_each_once(sources[kind], [(world, LAYOUTS[1], 1, False) for world in worlds])


@pytest.mark.parametrize("strategy", ["first_exhausted", "all_exhausted"])
@pytest.mark.parametrize("worlds", [(1, 2), (2, 1), (2, 4), (4, 2), (3, 2)], ids=str)
@pytest.mark.parametrize("batches", [0, 1, 3])
def test_a_mix_gives_what_the_ranks_before_would_have_read(
    strategy: str, worlds: tuple[int, int], batches: int
) -> None:
    """In this pass and in the next, into which members that have not ended are carried."""

    def mix() -> MixedStream:
        return MixedStream([Lengths(N), Lengths(9)], [0.75, 0.25], ["a", "b"], strategy)

    whole, before = (readers(mix, worlds[0], LAYOUTS[1]) for _ in range(2))
    after = readers(mix, worlds[1], LAYOUTS[2])
    seen = Counter(number for one in before for batch in islice(one, batches) for number in numbers(batch))
    go_on(after, [one.state_dict() for one in before])
    assert seen + read_to_the_end(after) == read_to_the_end(whole)
    for one in (*after, *whole):
        one.begin_epoch(1, one.state_dict())
    assert read_to_the_end(after) == read_to_the_end(whole)


@pytest.mark.parametrize("worlds", [(1, 2), (2, 1), (2, 4), (4, 2)], ids=str)
def test_without_shuffling_steps_hold_the_same_records(worlds: tuple[int, int]) -> None:
    whole, before, after = (
        readers(partial(numbered, 40), world, {"batch_size": 8 // world}, shuffle=False)
        for world in (worlds[0], *worlds)
    )

    def steps(ranks: list[StreamSampler]) -> list[set[Any]]:
        return [{number for batch in step for number in numbers(batch)} for step in zip(*ranks, strict=True)]

    for one in before:
        assert len(list(islice(iter(one), 2))) == 2
    go_on(after, [one.state_dict() for one in before])
    assert steps(after) == steps(whole)[2:]


def test_an_iterable_that_cannot_be_copied_is_refused() -> None:
    def source() -> Streamed:
        iterable = Stateful()
        iterable.lock = Lock()  # type: ignore[attr-defined]
        return opened(iterable)

    states = [one.state_dict() for one in readers(source, 2, LAYOUTS[0])]
    (one,) = readers(source, 1, LAYOUTS[0])
    go_on([one], states)
    (error,) = next(iter(one))
    assert isinstance(error, ValueError) and "resume with as many processes as before, 2" in str(error)
