"""ResumableSampler: coverage, equal batch counts, resume, on one rank and several."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchtune_qwenvl.data import ResumableSampler


def batches(n: int, world: int, **kwargs: object) -> list[list[list[int]]]:
    """Every rank's batches."""
    return [list(ResumableSampler(n, rank=r, world_size=world, **kwargs)) for r in range(world)]  # type: ignore[arg-type]


@given(
    n=st.integers(1, 60),
    world=st.integers(1, 4),
    batch_size=st.integers(1, 5),
    shuffle=st.booleans(),
    seed=st.integers(0, 5),
)
def test_every_sample_once_and_as_many_batches_on_every_rank(
    n: int, world: int, batch_size: int, shuffle: bool, seed: int
) -> None:
    ranks = batches(n, world, batch_size=batch_size, shuffle=shuffle, seed=seed)
    assert len({len(rank) for rank in ranks}) == 1
    assert sorted(i for rank in ranks for batch in rank for i in batch) == list(range(n))
    assert len(ranks[0]) == len(ResumableSampler(n, batch_size=batch_size, world_size=world))


@given(
    n=st.integers(1, 60),
    world=st.integers(1, 3),
    batch_size=st.integers(1, 5),
    done=st.integers(0, 20),
    epoch=st.integers(0, 3),
    drop_last=st.booleans(),
)
def test_resume_goes_on_where_it_stopped(
    n: int, world: int, batch_size: int, done: int, epoch: int, drop_last: bool
) -> None:
    step = batch_size * world
    if drop_last and n < step:
        return
    for rank in range(world):
        sampler = ResumableSampler(n, batch_size=batch_size, rank=rank, world_size=world, drop_last=drop_last)
        sampler.set_position(epoch)
        whole = list(sampler)
        sampler.set_position(epoch, min(done * step, n))
        assert list(sampler) == whole[done:]
        assert len(sampler) == len(whole[done:])


def test_two_ranks_read_in_a_step_what_one_process_reads() -> None:
    one = batches(21, 1, batch_size=4, seed=3)[0]
    two = batches(21, 2, batch_size=2, seed=3)
    assert [sorted(a + b) for a, b in zip(*two, strict=True)] == [sorted(batch) for batch in one]


def test_ranks_take_turns() -> None:
    """As many samples on every rank as can be, also in a step that is not full."""
    ranks = batches(11, 2, batch_size=4, shuffle=False)
    assert ranks == [[[0, 2, 4, 6], [8, 10]], [[1, 3, 5, 7], [9]]]


def test_epochs_and_seeds_differ_and_repeat() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        sampler = ResumableSampler(30, seed=seed)
        sampler.set_position(epoch)
        return list(sampler)

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(5, 0)
    assert list(ResumableSampler(3, shuffle=False)) == [[0], [1], [2]]


def test_drop_last_says_how_many_it_leaves_out(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    ranks = batches(11, 2, batch_size=2, drop_last=True)
    assert [[len(batch) for batch in rank] for rank in ranks] == [[2, 2], [2, 2]]
    assert [record.message for record in caplog.records] == [
        "drop_last: 3 of 11 samples do not fill a step of 4 and are left out in epoch 0 (others in the next)"
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "at least one sample, got 0"),
        ({"n": 3, "rank": 2, "world_size": 2}, "rank from 0 to 1, got 2"),
        ({"n": 3, "batch_size": 0}, "batch size of at least 1"),
        ({"n": 3, "batch_size": 2, "world_size": 2, "drop_last": True}, "leaves nothing of 3 .* takes 4"),
    ],
)
def test_refuses(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResumableSampler(**arguments)  # type: ignore[arg-type]


def test_refuses_a_position_outside_the_epoch() -> None:
    with pytest.raises(ValueError, match=r"position from 0 to 3 samples.*got 4"):
        ResumableSampler(3).set_position(0, 4)
