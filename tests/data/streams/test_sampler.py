"""Batches of streams: each sample once, resume behind any batch, full rows, like work, ends and breaks."""

import statistics
from collections.abc import Iterator
from itertools import chain
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lengths import long_tailed
from torch.utils.data import Dataset, IterableDataset

from torchtune_qwenvl.data import ResumableSampler, SkippedSample, build_loader
from torchtune_qwenvl.data.samples import Item
from torchtune_qwenvl.data.streams.dataset import StreamedDataset, as_streamed
from torchtune_qwenvl.data.streams.kinds import NumberedStream
from torchtune_qwenvl.data.streams.mixed import MixedStream
from torchtune_qwenvl.data.streams.sampler import StreamSampler
from torchtune_qwenvl.data.streams.stream import Share
from torchtune_qwenvl.transforms.size import SampleSize


class Lengths(Dataset):
    """Sample i has so many tokens, and patches in every third; it is read nowhere."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def size(self, index: int) -> SampleSize:
        return SampleSize(self.lengths[index], 4 * (self.lengths[index] * 2 // 3) if index % 3 else 0)


def samplers(dataset: Any, world: int, batch_size: int = 1, **options: Any) -> list[StreamSampler]:
    shuffle, seed = options.pop("shuffle", True), options.pop("seed", 0)
    made = [
        StreamSampler(as_streamed(dataset), Share(rank, world, seed, shuffle), in_process=False, **options)
        for rank in range(world)
    ]
    for sampler in made:
        sampler.set_batch_size(batch_size)
    return made


def numbers(batch: list[Item]) -> list[tuple[int, int]]:
    return [(item.member, item.number) for item in batch]


def run(sampler: StreamSampler) -> tuple[list[list[tuple[int, int]]], list[dict]]:
    """The batches of an epoch, and the states in front of each and behind the last."""
    states, batches = [sampler.state_dict()], []
    for batch in sampler:
        batches.append(numbers(batch))
        states.append(sampler.state_dict())
    return batches, states


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(0, 20), min_size=1, max_size=60),
    world=st.integers(1, 3),
    batch_size=st.integers(1, 3),
    buffer=st.integers(1, 30),
    pack_to=st.sampled_from([None, 20]),
    padded=st.booleans(),
    look_ahead=st.integers(1, 4),
    shuffle=st.booleans(),
)
def test_every_sample_once_and_resume_at_every_batch(
    lengths: list[int],
    world: int,
    batch_size: int,
    buffer: int,
    pack_to: int | None,
    padded: bool,
    look_ahead: int,
    shuffle: bool,
) -> None:
    options = {"buffer": buffer, "pack_to": pack_to, "look_ahead": look_ahead, "shuffle": shuffle}
    options["padded"] = padded and pack_to is not None
    seen = []
    for rank, sampler in enumerate(samplers(Lengths(lengths), world, batch_size, **options)):
        sampler.begin_epoch(0, sampler.state_dict())
        batches, states = run(sampler)
        assert [state["ended"] for state in states[:-1]] == [False] * len(batches)
        for done, state in enumerate(states):
            again = samplers(Lengths(lengths), world, batch_size, **options)[rank]
            again.load_state_dict(state)
            assert run(again)[0] == batches[done:]
        assert sampler.state_dict()["ended"]
        if pack_to is None:
            assert all(len(batch) <= batch_size for batch in batches)
        for batch in batches if pack_to else ():
            tokens = [lengths[i] for _, i in batch if lengths[i]]
            assert sum(tokens) <= pack_to * batch_size
            assert not padded or len(tokens) * max(tokens, default=0) <= pack_to
        seen += [i for batch in batches for _, i in batch]
    assert sorted(seen) == list(range(len(lengths)))


def test_the_next_epoch_goes_on_or_begins_anew() -> None:
    (sampler,) = samplers(Lengths([1] * 20), 1, batch_size=2, buffer=6)
    batches = iter(sampler)
    first = [numbers(next(batches)) for _ in range(4)]
    sampler.begin_epoch(1, sampler.state_dict())
    second = run(sampler)[0]
    assert sorted(chain.from_iterable(first + second)) == [(0, i) for i in range(20)]
    sampler.begin_epoch(2, sampler.state_dict())
    third = run(sampler)[0]
    assert sorted(chain.from_iterable(third)) == [(0, i) for i in range(20)] and third != first + second
    orders = [run(samplers(Lengths([1] * 20), 1, seed=seed, buffer=6)[0])[0] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("world", [1, 4])
def test_rows_of_long_tailed_lengths_are_full(world: int) -> None:
    """97 % is what is asked for; every row of every window counts, the last of a pass among them."""
    lengths = long_tailed(40_000)
    tokens = rows = 0
    for sampler in samplers(Lengths(lengths), world, pack_to=8192):
        batches = run(sampler)[0]
        rows += len(batches)
        tokens += sum(lengths[i] for batch in batches for _, i in batch)
    assert tokens == sum(lengths) and tokens / (rows * 8192) >= 0.985


def test_ranks_have_like_work() -> None:
    """Their windows drift apart; a batch is taken from where it stands in its own."""
    data = Lengths(long_tailed(24_000))

    def slack(work: Any) -> float:
        steps = zip(*(run(s)[0] for s in samplers(data, 4, pack_to=8192, work=work)), strict=False)
        costs = [[sum(cost(*data.size(i)) for _, i in batch) for batch in step] for step in steps]
        return statistics.mean(max(step) / statistics.mean(step) for step in costs) - 1

    def cost(tokens: int, patches: int) -> float:
        return tokens + patches / 4

    assert slack(cost) < 0.6 * slack(lambda tokens, patches: 0.0)


class Source(IterableDataset):
    """Samples of one token; breaks, or has none, where it is told to."""

    def __init__(self, n: int, breaks_at: int | None = None) -> None:
        self.n, self.breaks_at = n, breaks_at

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for i in range(self.n):
            if i == self.breaks_at:
                raise ConnectionError("the other side hung up")
            yield {"tokens": [i, i], "mask": [True, False], "input_pos": torch.zeros(2, 3, dtype=torch.int64)}


def loader(source: Any, workers: int, **options: Any) -> Any:
    batch_size = options.pop("batch_size", 2)
    share = Share(**options)
    sampler = StreamSampler(as_streamed(source), share, buffer=4, in_process=workers > 0)
    return build_loader(
        as_streamed(source),
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        on_bad_sample="skip",
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_nothing_and_ends_are_empty_batches(workers: int) -> None:
    data = loader(Source(9), workers)
    batches = iter(data)
    tokens = [next(batches).inputs["tokens"][:, 0].tolist() for _ in range(5)]
    plain = iter(loader(Source(9), 0))
    assert tokens == [next(plain).inputs["tokens"][:, 0].tolist() for _ in range(5)]
    assert sorted(chain.from_iterable(tokens)) == list(range(9)) and not data.more
    for _ in range(3):
        batch = next(batches)
        assert batch.samples == 0 and batch.inputs["labels"].tolist() == [[-100]]
    again = loader(Source(9), workers)
    again.load_state_dict(data.state_dict())
    assert next(iter(again)).samples == 0 and not again.more
    with pytest.raises(ValueError, match="has no length: set max_steps_per_epoch"):
        len(data)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_that_breaks_off_is_an_error_behind_what_it_gave(workers: int) -> None:
    batches = iter(loader(Source(9, breaks_at=5), workers, shuffle=False))
    assert [next(batches).inputs["tokens"][:, 0].tolist() for _ in range(2)] == [[0, 1], [2, 3]]
    message = (
        r"broke off after Source, sample 4 \(from 0\): ConnectionError: the other side hung up; .*resume"
    )
    with pytest.raises(ValueError, match=message):
        list(batches)


def test_a_rank_without_samples_has_empty_batches() -> None:
    data = loader(Source(1), 0, rank=1, world_size=2)
    assert next(iter(data)).samples == 0 and not data.more


def test_another_stream_cannot_be_resumed() -> None:
    (sampler,) = samplers(Lengths([3] * 20), 1, pack_to=9, buffer=8)
    next(iter(sampler))
    (other,) = samplers(Lengths([3] * 9 + [2] * 11), 1, pack_to=9, buffer=8)
    other.load_state_dict(sampler.state_dict())
    (broken,) = next(iter(other))
    assert isinstance(broken, ValueError) and "does not give what it gave in the run that is resumed" in str(
        broken
    )


def test_samples_that_are_none() -> None:
    class Words(IterableDataset):
        def __iter__(self) -> Iterator[Any]:
            yield {"text": "a"}
            yield "b"

    found = [sample for batch in [next(iter(loader(Words(), 0)))] for sample in batch.skipped]
    assert {type(sample) for sample in found} == {SkippedSample} and {s.index for s in found} == {0, 1}
    reasons = sorted(sample.reason for sample in found)
    assert reasons[0].startswith("Words, sample 0 (from 0): expected a finished sample with tokens")
    assert (
        "got the keys ['text'] (apply the transform, or pass the records to vision_chat_dataset" in reasons[0]
    )
    assert "got str" in reasons[1]


def mix(*weights: float, strategy: str = "first_exhausted") -> MixedStream:
    members = [Lengths([3] * 12), StreamedDataset(NumberedStream(None, 30), Lengths([5] * 30))]
    return MixedStream(members, weights, ["a", "b"], strategy)


@pytest.mark.parametrize("strategy", ["first_exhausted", "all_exhausted"])
@pytest.mark.parametrize("world", [1, 2])
def test_mixed_streams_share_repeat_and_resume(strategy: str, world: int) -> None:
    for rank, sampler in enumerate(samplers(mix(0.5, 0.5, strategy=strategy), world, buffer=5)):
        for epoch in range(4):
            sampler.begin_epoch(epoch, sampler.state_dict())
            batches, states = run(sampler)
            drawn = [[i for batch in batches for m, i in batch if m == member] for member in (0, 1)]
            assert abs(len(drawn[0]) - len(drawn[1])) <= 1
            if strategy == "first_exhausted":
                assert len(set(drawn[0])) == len(drawn[0]) <= 12
            else:
                assert len(drawn[0]) >= 30 // world - 1 and len(set(drawn[0])) >= 12 // world
            for done in range(0, len(states), 3):
                again = samplers(mix(0.5, 0.5, strategy=strategy), world, buffer=5)[rank]
                again.load_state_dict(states[done])
                assert run(again)[0] == batches[done:]


def test_a_mix_of_streams_goes_on_in_the_members_that_have_not_ended() -> None:
    (sampler,) = samplers(mix(0.5, 0.5), 1, shuffle=False)
    second = []
    for epoch in range(2):
        sampler.begin_epoch(epoch, sampler.state_dict())
        second += [i for batch in run(sampler)[0] for member, i in batch if member == 1]
    assert second[:20] == list(range(20))


def test_mixes_that_do_not_fit() -> None:
    with pytest.raises(
        ValueError, match="expected a weight for each of 2 datasets, got 0; a stream has no length"
    ):
        MixedStream([Source(3), Source(3)], None, ["a", "b"])
    (sampler,) = samplers(mix(0.5, 0.5), 1, batch_size=4)
    next(iter(sampler))
    (other,) = samplers(mix(0.25, 0.75), 1, batch_size=4)
    other.load_state_dict(sampler.state_dict())
    with pytest.raises(ValueError, match=r"with the weights \[0.5, 0.5\], not \[0.25, 0.75\]"):
        next(iter(other))
    with pytest.raises(ValueError, match="shuffle_buffer: expected at least 1 sample, got 0"):
        StreamSampler(as_streamed(Source(3)), Share(), buffer=0)
    assert ResumableSampler(3).state_dict()["mixture"] is None
