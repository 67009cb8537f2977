"""Fewer tokens per image, for late interaction: similar tokens, or neighbours, become their mean.

Similar tokens are found by Ward's method on tokens of length 1 (arXiv 2409.14683; ColPali takes rows of
similarities instead of tokens). n tokens, d width, f the factor.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, normalize


def pool_by_factor(
    tokens: Tensor,
    factor: int,
    *,
    by: Literal["similarity", "neighbours"] = "similarity",
    grid: tuple[int, int, int] | None = None,
) -> Tensor:
    """About n / f tokens that stand for n.

    Args:
        tokens: [n, d] of one image, in reading order.
        factor: f; 1 changes nothing.
        by: "similarity" gives ceil(n / f) groups of similar tokens, in the order of their first tokens;
            "neighbours" takes blocks of f patches, as square as f allows, smaller ones at the edge.
        grid: (t, h, w) of the tokens, for neighbours.

    Raises:
        ValueError: a factor below 1, no tokens, or a grid that does not fit.
    """
    if factor < 1:
        raise ValueError(f"factor: expected at least 1, got {factor}")
    if tokens.ndim != 2 or not len(tokens):
        raise ValueError(f"expected tokens [n, d] with n at least 1, got the shape {tuple(tokens.shape)}")
    if by == "neighbours":
        return _blocks(tokens, factor, grid)
    if by != "similarity":
        raise ValueError(f'by: expected "similarity" or "neighbours", got {by!r}')
    count = -(-len(tokens) // factor)
    groups = torch.from_numpy(ward_groups(normalize(tokens.detach().double().cpu(), dim=1).numpy(), count))
    groups = groups.to(tokens.device)
    sums = tokens.new_zeros(count, tokens.shape[1]).index_add(0, groups, tokens)
    return sums / torch.bincount(groups, minlength=count).to(tokens.dtype)[:, None]


def ward_groups(points: np.ndarray, count: int) -> np.ndarray:
    """Group of each point, [n] numbers below `count`, by Ward's method; groups are numbered by their first
    points.

    Pairs that are each other's nearest are merged along a chain of nearest neighbours: O(n^2) in all. Ward's
    distance never shrinks by a merge, so the n - count smallest merges are those of the usual algorithm.
    """
    merges = sorted(_merges(points))[: len(points) - count]
    parent = list(range(len(points)))

    def first_of(point: int) -> int:
        while parent[point] != point:
            point = parent[point]
        return point

    for _, one, other in merges:
        low, high = sorted((first_of(one), first_of(other)))
        parent[high] = low
    firsts = [first_of(point) for point in range(len(points))]
    return np.unique(firsts, return_inverse=True)[1].reshape(-1)


def _merges(points: np.ndarray) -> list[tuple[float, int, int]]:
    """(height, a point of one cluster, a point of the other) of all n - 1 merges."""
    n = len(points)
    squares = (points**2).sum(1)
    distance = np.maximum(squares[:, None] + squares - 2 * points @ points.T, 0)
    np.fill_diagonal(distance, np.inf)
    size = np.ones(n)
    alive = np.ones(n, dtype=bool)
    merges: list[tuple[float, int, int]] = []
    chain: list[int] = []
    while len(merges) < n - 1:
        if not chain:
            chain.append(int(np.argmax(alive)))
        last = chain[-1]
        nearest = int(np.argmin(distance[last]))
        # Of equal neighbours the one before in the chain, else the chain would run in a circle.
        if len(chain) > 1 and distance[last, chain[-2]] <= distance[last, nearest]:
            nearest = chain[-2]
            del chain[-2:]
            merges.append((float(distance[last, nearest]), last, nearest))
            _join(distance, size, alive, last, nearest)
        else:
            chain.append(nearest)
    return merges


def _join(distance: np.ndarray, size: np.ndarray, alive: np.ndarray, kept: int, gone: int) -> None:
    """Merge two clusters in place, by Lance and Williams' formula for Ward's method on squared distances."""
    a, b, others = size[kept], size[gone], size
    with np.errstate(invalid="ignore"):  # infinite minus infinite on rows that are gone
        row = (
            (a + others) * distance[kept] + (b + others) * distance[gone] - others * distance[kept, gone]
        ) / (a + b + others)
    alive[gone] = False
    row[~alive] = np.inf
    row[kept] = np.inf
    distance[kept], distance[:, kept] = row, row
    distance[gone], distance[:, gone] = np.inf, np.inf
    size[kept] += size[gone]


def _blocks(tokens: Tensor, factor: int, grid: tuple[int, int, int] | None) -> Tensor:
    if grid is None or math.prod(grid) != len(tokens):
        raise ValueError(f"by neighbours: expected the grid (t, h, w) of {len(tokens)} tokens, got {grid}")
    rows = max(side for side in range(1, math.isqrt(factor) + 1) if factor % side == 0)
    block = (rows, factor // rows)
    planes = tokens.view(*grid, -1).permute(0, 3, 1, 2)
    # Blocks at the edge are means over what they hold.
    pooled = avg_pool2d(planes, block, ceil_mode=True, count_include_pad=False)
    return pooled.permute(0, 2, 3, 1).reshape(-1, tokens.shape[1])
