"""A run that is resumed with batches of another kind or size reads on where the samples ended: each once."""

from collections import Counter
from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset

from torchtune_qwenvl.data import ResumableSampler
from torchtune_qwenvl.data.order.mixture import Mixture
from torchtune_qwenvl.data.order.packed_sampler import PackedSampler, tokens_as_work
from torchtune_qwenvl.data.order.plan import Planner
from torchtune_qwenvl.data.order.sampler import of_ranks
from torchtune_qwenvl.data.streams.dataset import as_streamed
from torchtune_qwenvl.data.streams.sampler import StreamSampler
from torchtune_qwenvl.data.streams.stream import Share
from torchtune_qwenvl.transforms.size import SampleSize

LAYOUTS: tuple[dict[str, Any], ...] = (
    {"batch_size": 1},
    {"batch_size": 3},
    {"batch_size": 1, "pack_to": 20},
    {"batch_size": 2, "pack_to": 30},
    {"batch_size": 1, "pack_to": 40, "padded": True},
)
layouts = st.sampled_from(LAYOUTS)


def sampler(lengths: list[int], rank: int, world: int, layout: dict[str, Any], mix: bool) -> ResumableSampler:
    sizes = torch.tensor([(n, 0) for n in lengths])
    mixture = Mixture([len(lengths) - 2, 2], [0.5, 0.5], "all_exhausted") if mix else None
    place: dict[str, Any] = {"seed": 3, "rank": rank, "world_size": world, "mixture": mixture}
    if "pack_to" in layout:
        rest = {key: value for key, value in layout.items() if key != "batch_size"}
        made: ResumableSampler = PackedSampler(sizes, look_ahead=16, **rest, **place)
    else:
        n = len(mixture or lengths)
        done = Planner(sizes, tokens_as_work, seed=3).done
        made = ResumableSampler(n, layouts=done, **place)
    made.set_batch_size(layout["batch_size"])
    return made


def placed(states: list[Any], world: int) -> list[Any]:
    """What each of `world` ranks loads of what all ranks have saved."""
    return states if len(states) == world else [of_ranks(states)] * world


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 15), min_size=6, max_size=60),
    stages=st.lists(st.tuples(layouts, st.integers(1, 4), st.integers(0, 4)), min_size=2, max_size=4),
    mix=st.booleans(),
)
def test_each_sample_once(
    lengths: list[int], stages: list[tuple[dict[str, Any], int, int]], mix: bool
) -> None:
    """Some batches of a first layout on some ranks, some of a second, …; of the last all that is left."""
    seen: list[int] = []
    states: list[Any] = []
    for number, (layout, world, batches) in enumerate(stages):
        ranks = [sampler(lengths, rank, world, layout, mix) for rank in range(world)]
        if states:
            for one, state in zip(ranks, placed(states, world), strict=True):
                one.load_state_dict(state)
        assert len({len(one) for one in ranks}) == 1
        last = number == len(stages) - 1
        for _, *step in zip(range(10**6 if last else batches), *ranks, strict=False):
            seen += [index for batch in step for index in batch]
            states = [one.state_dict() for one in ranks]
    whole = sampler(lengths, 0, 1, LAYOUTS[0], mix)
    assert Counter(seen) == Counter(index for batch in whole for index in batch)


def steps_of(ranks: list[ResumableSampler], per_step: int) -> list[set[int]]:
    """The samples of each optimizer step, of so many batches on every rank."""
    batches = [[i for batch in step for i in batch] for step in zip(*ranks, strict=True)]
    starts = range(0, len(batches), per_step)
    return [{i for batch in batches[at : at + per_step] for i in batch} for at in starts]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 15), min_size=6, max_size=60),
    layout=layouts,
    world=st.sampled_from([(1, 2), (2, 1), (2, 4), (4, 2), (1, 3)]),
    rounds=st.integers(1, 2),
    done=st.integers(1, 3),
)
def test_on_other_ranks_steps_hold_the_same_samples(
    lengths: list[int], layout: dict[str, Any], world: tuple[int, int], rounds: int, done: int
) -> None:
    """If a step takes as many batches over all ranks; in this epoch and the next."""
    before, after = ([sampler(lengths, r, size, layout, False) for r in range(size)] for size in world)
    expected = steps_of(before, rounds * len(after))
    if done >= len(expected):
        return
    for one in before:
        list(islice(iter(one), rounds * len(after) * done))
    for one, state in zip(after, placed([one.state_dict() for one in before], len(after)), strict=True):
        one.load_state_dict(state)
    assert steps_of(after, rounds * len(before)) == expected[done:]
    for one in (*before, *after):
        one.begin_epoch(1, one.state_dict())
    assert steps_of(after, rounds * len(before)) == steps_of(before, rounds * len(after))


@given(layout=layouts, done=st.integers(0, 5), again=st.integers(0, 5))
def test_stopped_twice_after_a_change(layout: dict[str, Any], done: int, again: int) -> None:
    """A state that was taken after a change of the layout leads to the same batches."""
    lengths = [1 + i * 7 % 13 for i in range(50)]
    first, second, third = (sampler(lengths, 0, 1, made, False) for made in (LAYOUTS[2], layout, layout))
    for _ in zip(range(done), first, strict=False):
        pass
    second.load_state_dict(first.state_dict())
    batches, states = [], [second.state_dict()]
    for batch in second:
        batches.append(batch)
        states.append(second.state_dict())
    again = min(again, len(batches))
    third.load_state_dict(states[again])
    assert list(third) == batches[again:]


def test_only_the_first_epoch_is_mixed() -> None:
    one, other = (sampler(list(range(1, 13)), 0, 1, layout, False) for layout in (LAYOUTS[2], LAYOUTS[3]))
    next(iter(one))
    other.load_state_dict(one.state_dict())
    assert sum(map(len, other)) < 12
    other.begin_epoch(1, other.state_dict())
    fresh = sampler(list(range(1, 13)), 0, 1, LAYOUTS[3], False)
    fresh.set_position(1)
    assert list(other) == list(fresh) and sum(map(len, fresh)) == 12


def test_another_number_of_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="had 9 samples in an epoch, now there are 8"):
        ResumableSampler(8).load_state_dict(ResumableSampler(9).state_dict())


class Lengths(Dataset):
    """Sample i has 1 + i % 9 tokens."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def size(self, index: int) -> SampleSize:
        return SampleSize(1 + index % 9, 0)


def stream(n: int, rank: int, world: int, layout: dict[str, Any], buffer: int) -> StreamSampler:
    rest = {key: value for key, value in layout.items() if key != "batch_size"}
    share = Share(rank, world, seed=3)
    made = StreamSampler(
        as_streamed(Lengths(n)), share, buffer=buffer, look_ahead=4, in_process=False, **rest
    )
    made.set_batch_size(layout["batch_size"])
    return made


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 90),
    world=st.integers(1, 2),
    stages=st.lists(st.tuples(layouts, st.integers(0, 9), st.integers(1, 20)), min_size=2, max_size=4),
)
def test_each_record_of_a_stream_once(
    n: int, world: int, stages: list[tuple[dict[str, Any], int, int]]
) -> None:
    seen: list[int] = []
    for rank in range(world):
        state: Any = None
        for number, (layout, batches, buffer) in enumerate(stages):
            one = stream(n, rank, world, layout, buffer)
            if state is not None:
                one.load_state_dict(state)
            last = number == len(stages) - 1
            for _, batch in zip(range(10**6 if last else batches), one, strict=False):
                seen += [item.number for item in batch]
                state = one.state_dict()
    assert sorted(seen) == list(range(n))


@given(layout=layouts, done=st.integers(0, 9), again=st.integers(0, 9))
def test_a_stream_stopped_twice_after_a_change(layout: dict[str, Any], done: int, again: int) -> None:
    first, second, third = (stream(60, 0, 1, made, 11) for made in (LAYOUTS[2], layout, layout))
    for _ in zip(range(done), first, strict=False):
        pass
    second.load_state_dict(first.state_dict())
    batches, states = [], [second.state_dict()]
    for batch in second:
        batches.append([item.number for item in batch])
        states.append(second.state_dict())
    again = min(again, len(batches))
    third.load_state_dict(states[again])
    assert [[item.number for item in batch] for batch in third] == batches[again:]
