"""Which dataset of a mix comes when, in exact shares, and which of its samples.

    weights 0.5 0.25 0.25     a b a c | a b a c | ...     the k-th sample of a member has its turn at time
                                                          (k + 1/2) / weight; all turns are taken by time

A member's samples are read in passes. Each pass has its own order and reads every sample once. A pass does
not end with the epoch: the next epoch continues where this one stopped. So the order of an epoch depends only
on lengths, weights, seed and the epoch's number, and a resumed run needs no other state.
"""

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

STRATEGIES = ("first_exhausted", "all_exhausted")
TOLERANCE = 1e-6


def check_weights(weights: Sequence[object]) -> list[float]:
    """The weights as floats.

    Raises:
        ValueError: no weights, one that is not a number or is negative, or a sum other than 1 (within 1e-6);
            then the message gives the weights to write instead.
    """
    for number, weight in enumerate(weights):
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < math.inf:
            raise ValueError(
                f"weights of a mix: expected numbers of at least 0, dataset {number} (from 0) has {weight!r}"
            )
    shares = [float(weight) for weight in weights]  # type: ignore[arg-type]
    total = math.fsum(shares)
    if total == 0:
        raise ValueError(f"weights of a mix: expected a weight above 0, got {len(shares)} weights, all 0")
    if abs(total - 1) > TOLERANCE:
        instead = ", ".join(f"{share / total:.6g}" for share in shares)
        raise ValueError(
            f"weights of a mix: expected a sum of 1, got {total:.6g}; in the same ratio: {instead}"
        )
    return shares


def check_strategy(strategy: str) -> str:
    """Return the stopping strategy, or raise a ValueError if it is not one."""
    if strategy not in STRATEGIES:
        raise ValueError(f"stopping_strategy: expected one of {', '.join(STRATEGIES)}, got {strategy!r}")
    return strategy


class Mixture:
    """The order in which samples of several datasets are read, as indices into their concatenation.

    Args:
        lengths: samples of each member.
        weights: each member's share of the drawn samples, see `check_weights`. None draws in proportion to
            the lengths, so every sample once per epoch.
        stopping_strategy: when an epoch ends, named as in ``datasets.interleave_datasets``.
            "first_exhausted": after the last sample of the member that ends first. "all_exhausted": when
            every member has been read once; members that end earlier begin again in a new order.

    Raises:
        ValueError: lengths and weights differ in number, a member without samples, an unknown strategy.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        weights: Sequence[object] | None = None,
        stopping_strategy: str = "first_exhausted",
    ) -> None:
        if weights is not None and len(weights) != len(lengths):
            raise ValueError(
                f"expected a weight for each of {len(lengths)} datasets, got {len(weights)} weights"
            )
        if not lengths or min(lengths) < 1:
            raise ValueError(
                f"expected datasets with at least one sample each, got the lengths {list(lengths)}"
            )
        self.lengths = list(lengths)
        shares = [n / sum(lengths) for n in lengths] if weights is None else check_weights(weights)
        self.weights = shares
        draws = [n / share for n, share in zip(lengths, shares, strict=True) if share]
        # The margin keeps rounding from losing or adding the last sample of the member that ends the epoch.
        if check_strategy(stopping_strategy) == "first_exhausted":
            self.drawn = [math.floor(min(draws) * share + 1e-6) for share in shares]
        else:
            self.drawn = [math.ceil(max(draws) * share - 1e-6) for share in shares]

    def __len__(self) -> int:
        """Samples of an epoch."""
        return sum(self.drawn)

    def state_dict(self) -> dict[str, Any]:
        """What must be the same in a resumed run."""
        return {"lengths": self.lengths, "weights": self.weights, "drawn": self.drawn}

    def order(self, epoch: int, seed: int = 0, shuffle: bool = True) -> Tensor:
        """Indices of the epoch's samples, int64 [samples of an epoch].

        Args:
            epoch: counted from 0.
            seed: of the order.
            shuffle: False keeps each member's order, with regular turns.
        """
        times, indices, before = [], [], 0
        for member, (n, share, drawn) in enumerate(zip(self.lengths, self.weights, self.drawn, strict=True)):
            generator = torch.Generator().manual_seed(seed_of("turns", seed, member, epoch))
            moment = torch.rand(drawn, generator=generator, dtype=torch.float64) if shuffle else 0.5
            if drawn:
                times.append((torch.arange(drawn, dtype=torch.float64) + moment) / share)
                indices.append(before + self._draws(member, epoch * drawn, drawn, seed, shuffle))
            before += n
        return torch.cat(indices)[torch.cat(times).argsort(stable=True)]

    def _draws(self, member: int, first: int, count: int, seed: int, shuffle: bool) -> Tensor:
        """Draws `first` to `first + count` of a member, counted over all its passes."""
        n = self.lengths[member]
        passes = range(first // n, (first + count - 1) // n + 1)
        orders = [pass_order(n, seed_of("pass", seed, member, number), shuffle) for number in passes]
        return torch.cat(orders)[first - passes[0] * n :][:count]


def pass_order(n: int, seed: int, shuffle: bool) -> Tensor:
    """Numbers 0 to n - 1, shuffled or not."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed)) if shuffle else torch.arange(n)


def seed_of(*names: object) -> int:
    """A seed for one of the many orders of a run, the same in every process."""
    return int.from_bytes(hashlib.blake2b(repr(names).encode(), digest_size=7).digest(), "big")
