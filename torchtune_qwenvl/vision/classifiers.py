"""Two classifiers without training steps, to judge features by: nearest neighbours, and ridge regression.

n training images, m held out, d width, c classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

STRENGTHS = tuple(10.0**power for power in range(-4, 5))


def split_by_class(labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to train on and rows held out, with about this share of each class held out, but at least one.

    Args:
        labels: [images], int64.
        share: between 0 and 1.
        seed: of the shuffle.

    Raises:
        ValueError: a share that is no share, or a class with one image.
    """
    if not 0 < share < 1:
        raise ValueError(f"held_out: expected a share between 0 and 1, got {share}")
    generator = torch.Generator().manual_seed(seed)
    train, held = [], []
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero()[:, 0]
        if len(rows) < 2:
            raise ValueError(
                f"class {label} has one image, expected at least 2: one to train on, one held out"
            )
        rows = rows[torch.randperm(len(rows), generator=generator)]
        count = min(len(rows) - 1, max(1, round(share * len(rows))))
        held.append(rows[:count])
        train.append(rows[count:])
    return torch.cat(train).sort().values, torch.cat(held).sort().values


def nearest_neighbours(train: Tensor, labels: Tensor, held: Tensor, k: int) -> Tensor:
    """Class of each held-out vector, [m], by a vote of its k nearest by cosine; ties go to the nearer class.

    Args:
        train: [n, d].
        labels: [n], int64.
        held: [m, d].
        k: number of neighbours.
    """
    cosines, rows = (normalize(held, dim=1) @ normalize(train, dim=1).T).topk(min(k, len(train)))
    votes = one_hot(labels[rows], int(labels.max()) + 1).to(cosines.dtype)
    # Cosines decide between classes with equal votes only: k of them add up to less than one vote.
    return (votes.sum(1) + (votes * cosines[..., None]).sum(1) / (4 * k)).argmax(1)


class Ridge(NamedTuple):
    """A ridge classifier; `scores` are those of the held-out vectors, [m, c]."""

    scores: Tensor
    strength: float


def ridge(train: Tensor, labels: Tensor, held: Tensor, strengths: Sequence[float] = STRENGTHS) -> Ridge:
    """Ridge regression to one-hot targets; its strength is chosen by leave-one-out on the training part.

    Columns are standardised. With the SVD U S V' of the training part, its hat matrix is
    H = 1/n + U S^2 / (S^2 + n strength) U', and the residual without an image is that with it over 1 - H_ii.

    Args:
        train: [n, d].
        labels: [n], int64.
        held: [m, d].
        strengths: to choose from, relative to the number of images.
    """
    mean, spread = train.double().mean(0), train.double().std(0, correction=0)
    scale = torch.where(spread > 1e-12 * spread.max(), spread, torch.inf)  # constant columns say nothing
    x, targets = (train.double() - mean) / scale, one_hot(labels).double()
    base = targets.mean(0)
    u, s, v = _svd(x)
    turned = u.T @ (targets - base)
    found = []
    for strength in strengths:
        shrink = s**2 / (s**2 + len(x) * strength)
        leverage = 1 / len(x) + (u**2) @ shrink
        fitted = base + u @ (shrink[:, None] * turned)
        left_out = targets - (targets - fitted) / (1 - leverage).clamp_min(1e-9)[:, None]
        right = (left_out.argmax(1) == labels).double().mean().item()
        found.append((right, -(left_out - targets).square().mean().item(), strength))
    strength = max(found)[2]
    weight = v @ ((s / (s**2 + len(x) * strength))[:, None] * turned)
    return Ridge(base + (held.double() - mean) / scale @ weight, strength)


def _svd(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, S, V with x = U diag(S) V', from the smaller Gram matrix, without directions of length 0."""
    wide = x.shape[1] > len(x)
    values, vectors = torch.linalg.eigh(x @ x.T if wide else x.T @ x)
    kept = values > 1e-10 * values[-1].clamp_min(1e-300)
    s, side = values[kept].sqrt(), vectors[:, kept]
    return (side, s, x.T @ side / s) if wide else (x @ side / s, s, side)
