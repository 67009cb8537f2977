"""Images of all sizes in batches: by number of patches, stills and clips together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch


def by_tokens(items: Iterable[Any], budget: int, size: Callable[[Any], int]) -> Iterator[list[Any]]:
    """Items in their order, in lists of at most `budget` patches, one item at least."""
    batch: list[Any] = []
    held = 0
    for item in items:
        if batch and held + size(item) > budget:
            yield batch
            batch, held = [], 0
        batch.append(item)
        held += size(item)
    if batch:
        yield batch


def join_patches(patches: Sequence[torch.Tensor], channels: int) -> torch.Tensor:
    """Patches of several images as one tensor; stills are repeated if a clip is among them.

    Args:
        patches: [n_i, c·p·p] of stills as bytes, [n_i, c·T·p·p] of everything else.
        channels: c.
    """
    width = max(each.shape[1] for each in patches)
    return torch.cat(
        [each if each.shape[1] == width else _repeated(each, width, channels) for each in patches]
    )


def _repeated(still: torch.Tensor, width: int, channels: int) -> torch.Tensor:
    frames = width // still.shape[1]
    planes = still.view(len(still), channels, 1, -1).expand(-1, -1, frames, -1)
    return planes.reshape(len(still), width)
