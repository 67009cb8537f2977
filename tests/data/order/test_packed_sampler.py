"""PackedSampler: coverage, equal numbers of batches, resume, rows of one size side by side on the ranks."""

import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lengths import long_tailed

from torchtune_qwenvl.data import PackedSampler


def samplers(sizes: torch.Tensor, world: int, batch_size: int = 1, **options) -> list[PackedSampler]:
    made = [PackedSampler(sizes, rank=rank, world_size=world, **options) for rank in range(world)]
    for sampler in made:
        sampler.set_batch_size(batch_size)
    return made


def tokens_only(lengths: list[int]) -> torch.Tensor:
    return torch.tensor([[length, 0] for length in lengths])


@given(
    lengths=st.lists(st.integers(0, 20), min_size=1, max_size=60),
    world=st.integers(1, 4),
    batch_size=st.integers(1, 3),
    look_ahead=st.integers(1, 30),
    epoch=st.integers(0, 2),
    shuffle=st.booleans(),
    padded=st.booleans(),
)
def test_every_sample_once_and_resume_at_every_step(
    lengths: list[int], world: int, batch_size: int, look_ahead: int, epoch: int, shuffle: bool, padded: bool
) -> None:
    options = {"pack_to": 20, "look_ahead": look_ahead, "shuffle": shuffle, "padded": padded}
    ranks = samplers(tokens_only(lengths), world, batch_size, **options)
    for sampler in ranks:
        sampler.set_position(epoch)
    batches = [list(sampler) for sampler in ranks]
    assert {len(b) for b in batches} == {len(ranks[0])}
    assert sorted(i for rank in batches for batch in rank for i in batch) == list(range(len(lengths)))
    for batch in (batch for rank in batches for batch in rank):
        tokens = [lengths[i] for i in batch if lengths[i]]
        assert sum(tokens) <= 20 * batch_size
        assert not padded or len(tokens) * max(tokens, default=0) <= 20
    done = 0
    for step in range(len(ranks[0])):
        for sampler, whole in zip(ranks, batches, strict=True):
            sampler.set_position(epoch, done)
            assert list(sampler) == whole[step:] and len(sampler) == len(whole) - step
        done = ranks[0].after_step(done)
        assert done == sum(len(batch) for rank in batches for batch in rank[: step + 1])
    assert done == len(lengths)


def test_epochs_and_seeds_differ_and_repeat() -> None:
    sizes = tokens_only(long_tailed(300))

    def order(seed: int, epoch: int) -> list[list[int]]:
        sampler = PackedSampler(sizes, pack_to=8192, seed=seed)
        sampler.set_position(epoch)
        return list(sampler)

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1) and order(0, 0) != order(5, 0)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_ranks_have_like_work(batch_size: int) -> None:
    """Images make a token up to twice as dear here; the slowest of 8 ranks sets the pace of a step."""
    lengths = long_tailed(20_000)
    sizes = torch.tensor([[n, 4 * (n * 2 // 3) if i % 3 else 0] for i, n in enumerate(lengths)])

    def work(tokens: int, patches: int) -> float:
        return tokens + patches / 4

    def slack(steps: list[list[list[int]]]) -> float:
        costs = [[sum(work(*sizes[i].tolist()) for i in batch) for batch in step] for step in steps]
        return statistics.mean(max(step) / statistics.mean(step) for step in costs) - 1

    ranks = samplers(sizes, 8, batch_size, pack_to=8192, work=work)
    steps = [list(step) for step in zip(*ranks, strict=True)]
    assert slack(steps[:-1]) < 0.01
    by_chance = samplers(sizes, 8, batch_size, pack_to=8192, work=lambda tokens, patches: 0.0)
    assert slack([list(step) for step in zip(*by_chance, strict=True)][:-1]) > 0.05


def test_a_position_of_another_plan_is_refused() -> None:
    sizes = tokens_only([8, 8, 8, 4, 4])
    sampler = PackedSampler(sizes, pack_to=8, shuffle=False)
    sampler.set_position(0, 3)
    with pytest.raises(ValueError, match="no step of epoch 0 ends after 4 samples: the data, max_seq_len"):
        sampler.set_position(0, 4)
    with pytest.raises(ValueError, match="position from 0 to 5"):
        sampler.set_position(0, 6)


def test_says_how_full_rows_are() -> None:
    sampler = PackedSampler(tokens_only([5, 3, 6, 1]), pack_to=8)
    assert sampler.fill == 15 / 16 and str(sampler) == "4 samples packed into 2 rows of 8 tokens, 93.8% full"


@pytest.mark.parametrize("world", [1, 4])
def test_padded_batches_of_like_lengths_have_little_padding(world: int) -> None:
    lengths = long_tailed(20_000)
    ranks = samplers(tokens_only(lengths), world, batch_size=7, pack_to=16384, padded=True)
    steps = list(zip(*ranks, strict=True))
    batches = [batch for step in steps for batch in step]
    places = [len(batch) * max(lengths[i] for i in batch) for batch in batches if batch]
    assert max(places) <= 16384 and sum(lengths) / sum(places) == pytest.approx(ranks[0].fill)
    assert ranks[0].fill > 0.97
    assert "batches of at most 16384 tokens with padding, 9" in str(ranks[0])
    costs = [[sum(lengths[i] for i in batch) for batch in step] for step in steps[:-1]]
    assert statistics.mean(max(step) / statistics.mean(step) for step in costs) < 1.01


def test_a_sample_longer_than_the_budget_is_named() -> None:
    with pytest.raises(
        ValueError, match="a sample has 9 tokens, a batch takes batch_tokens = 8: raise batch_tok"
    ):
        list(PackedSampler(tokens_only([3, 9]), pack_to=8, padded=True))
