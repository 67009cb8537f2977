"""Packer: rows hold what fits, nothing is lost or doubled, and rows are full."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lengths import long_tailed

from torchtune_qwenvl.data import Packer


def pack(lengths: list[int], capacity: int, **options: int) -> list[list[list[int]]]:
    """Buffers of rows of indices."""
    return list(Packer[int](capacity, lengths.__getitem__, **options)(range(len(lengths))))


@given(
    lengths=st.lists(st.integers(0, 20), max_size=80),
    look_ahead=st.integers(1, 30),
    multiple=st.integers(1, 5),
)
def test_every_item_once_in_rows_that_fit(lengths: list[int], look_ahead: int, multiple: int) -> None:
    buffers = pack(lengths, 20, look_ahead=look_ahead, multiple=multiple)
    rows = [row for buffer in buffers for row in buffer]
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(row and sum(lengths[i] for i in row) <= 20 for row in rows)
    assert all(len(buffer) % multiple == 0 for buffer in buffers[:-1])


def test_the_example() -> None:
    lengths = [5, 3, 6, 2, 4, 1, 7]
    assert pack(lengths, 8, look_ahead=6) == [[[2, 3], [0, 1]], [[6, 5]], [[4]]]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("look_ahead", [1024, 4096])
def test_rows_of_8k_are_full(seed: int, look_ahead: int) -> None:
    lengths = long_tailed(20_000, seed)
    rows = [row for buffer in pack(lengths, 8192, look_ahead=look_ahead, multiple=8) for row in buffer]
    assert sum(lengths) / (8192 * len(rows)) >= 0.998
    assert sum(lengths) / (8192 * rows_in_order(lengths, 8192)) < 0.9


def rows_in_order(lengths: list[int], capacity: int) -> int:
    """Rows it takes without looking ahead."""
    rows, room = 1, capacity
    for length in lengths:
        if length > room:
            rows, room = rows + 1, capacity
        room -= length
    return rows


def test_streams() -> None:
    """Rows come while the stream goes on, and no more than a buffer is taken beforehand."""
    taken = []

    def endless():
        rng = random.Random(0)
        while True:
            taken.append(rng.randint(1, 50))
            yield taken[-1]

    buffers = Packer[int](100, int, look_ahead=64)(endless())
    assert next(buffers) and len(taken) == 64
    assert next(buffers) and len(taken) == 128


def test_refuses() -> None:
    with pytest.raises(ValueError, match=r"a sample has 30 tokens, a row takes pack_to = 20: raise pack_to"):
        pack([3, 30], 20)
    with pytest.raises(ValueError, match="at least 1, got 0, 4096 and 1"):
        pack([3], 0)
