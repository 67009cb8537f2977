"""The order of a mix: exact shares at any point, passes without repetition, the end of an epoch, weights."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchtune_qwenvl.data import Mixture
from torchtune_qwenvl.data.order.mixture import check_weights

MEMBERS = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 20)), min_size=1, max_size=4).filter(
    lambda members: any(part for _, part in members)
)


def mixture(members: list[tuple[int, int]], strategy: str) -> Mixture:
    parts = sum(part for _, part in members)
    return Mixture([n for n, _ in members], [part / parts for _, part in members], strategy)


def drawn(mix: Mixture, epochs: int, seed: int = 0, shuffle: bool = True) -> list[list[int]]:
    """Of each member, the numbers of its samples in the order of `epochs` epochs."""
    starts = [sum(mix.lengths[:member]) for member in range(len(mix.lengths))]
    order = [index for epoch in range(epochs) for index in mix.order(epoch, seed, shuffle).tolist()]
    return [
        [index - start for index in order if start <= index < start + n]
        for start, n in zip(starts, mix.lengths, strict=True)
    ]


@given(MEMBERS, st.sampled_from(["first_exhausted", "all_exhausted"]), st.booleans(), st.integers(0, 3))
def test_each_sample_once_per_pass_and_exact_shares(
    members: list[tuple[int, int]], strategy: str, shuffle: bool, seed: int
) -> None:
    mix = mixture(members, strategy)
    for (n, _), samples in zip(members, drawn(mix, 3, seed, shuffle), strict=True):
        for start in range(0, len(samples), n):
            whole = samples[start : start + n]
            assert len(set(whole)) == len(whole)
    order = mix.order(1, seed, shuffle).tolist()
    assert len(order) == len(mix) and mix.order(1, seed, shuffle).tolist() == order
    before = 0
    for n, share in zip(mix.lengths, mix.weights, strict=True):
        came = [before <= index < before + n for index in order]
        for t in range(len(order) + 1):
            assert abs(sum(came[:t]) - share * t) <= len(members)
        before += n


@given(MEMBERS)
def test_where_an_epoch_ends(members: list[tuple[int, int]]) -> None:
    drawing = [(n, part) for n, part in members if part]
    first = mixture(drawing, "first_exhausted")
    assert all(count <= n for count, n in zip(first.drawn, first.lengths, strict=True))
    assert any(count == n for count, n in zip(first.drawn, first.lengths, strict=True))
    last = mixture(drawing, "all_exhausted")
    assert all(count >= n for count, n in zip(last.drawn, last.lengths, strict=True))
    assert any(count == n for count, n in zip(last.drawn, last.lengths, strict=True))


def test_an_epoch_goes_on_in_the_pass_of_the_one_before() -> None:
    mix = Mixture([4, 100], [0.5, 0.5])
    assert mix.drawn == [4, 4]
    first, second = drawn(mix, 25)
    assert [sorted(first[i : i + 4]) for i in range(0, 100, 4)] == [[0, 1, 2, 3]] * 25
    assert sorted(second) == list(range(100))
    assert first[:4] != first[4:8] or first[:4] != first[8:12]  # each pass has an order of its own


def test_without_weights_and_shuffling_it_is_every_sample_once() -> None:
    mix = Mixture([2, 4])
    assert mix.order(0, shuffle=False).tolist() == [2, 0, 3, 4, 1, 5]
    assert sorted(mix.order(7, seed=3).tolist()) == list(range(6))


def test_seeds_and_epochs_differ() -> None:
    mix = Mixture([50, 50], [0.5, 0.5])
    orders = [mix.order(epoch, seed).tolist() for epoch in (0, 1) for seed in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([0.5, -0.5], r"at least 0, dataset 1 \(from 0\) has -0.5"),
        (["a", 1], r"expected numbers of at least 0, dataset 0 \(from 0\) has 'a'"),
        ([True, 0], "dataset 0 .* has True"),
        ([float("nan"), 1], "has nan"),
        ([0, 0.0], "a weight above 0, got 2 weights, all 0"),
        ([0.7, 0.5], "a sum of 1, got 1.2; in the same ratio: 0.583333, 0.416667"),
    ],
)
def test_weights_that_do_not_fit(weights: list[object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_weights(weights)


def test_other_things_that_do_not_fit() -> None:
    assert check_weights([0.1] * 10) == [0.1] * 10  # whose sum is not 1 to the bit
    with pytest.raises(ValueError, match="a weight for each of 2 datasets, got 1 weights"):
        Mixture([1, 2], [1.0])
    with pytest.raises(ValueError, match=r"at least one sample each, got the lengths \[1, 0\]"):
        Mixture([1, 0])
    with pytest.raises(ValueError, match="stopping_strategy: expected one of first_exhausted, all_exhausted"):
        Mixture([1], stopping_strategy="never")
