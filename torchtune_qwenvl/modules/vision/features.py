"""Tokens of any layer of a vision encoder: in reading order, as maps, pooled.

Towers work on flat patches, image after image, in merge-block order. Here they become what people look at:

    [n, d] in merge-block order ─> per image a map [t, h, w, d] ─> reading order [t * h * w, d] ─> pooled [d]

n patches of all images together; t, h, w frames, rows and columns of patches of one image; d encoder width;
m merge size; [n / m^2, w] visual tokens of the decoder's width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchtune_qwenvl.modules.vision.plan import Grid, VisionPlan

POOLS = ("mean", "max", "cls")


@dataclass(frozen=True)
class LayerFeatures:
    """What one pass through an encoder kept; everything in the order of `pixel_values`.

    Attributes:
        grids: (t, h, w) of each image or clip, in patches.
        patches: index of a layer -> its output [n, d].
        merged: index of a layer -> its output through the merger [n / m^2, w]; empty unless asked for.
        cls: index of a layer -> its cls tokens [frames, d]; empty for an encoder without a cls token.
        deepstack: features of the deepstack mergers [n / m^2, w], of the layers that ran.
        tokens: the visual tokens [n / m^2, w]; None if the last layer did not run.
    """

    grids: tuple[Grid, ...]
    patches: Mapping[int, Tensor]
    merged: Mapping[int, Tensor]
    cls: Mapping[int, Tensor]
    deepstack: tuple[Tensor, ...]
    tokens: Tensor | None


def layer_indexes(indices: int | Iterable[int] | None, depth: int) -> list[int]:
    """Indexes of layers, counted as timm does: None is all, n the last n, a list these (-1 is the last).

    Raises:
        ValueError: a layer that the encoder does not have, or none at all.
    """
    if indices is None:
        return list(range(depth))
    if isinstance(indices, int):
        if not 1 <= indices <= depth:
            raise ValueError(f"expected 1 to {depth} last layers, got {indices}")
        return list(range(depth - indices, depth))
    wanted = [index + depth if index < 0 else index for index in indices]
    if beyond := [index for index in wanted if not 0 <= index < depth]:
        raise ValueError(f"layers {beyond}: the encoder has the layers 0 to {depth - 1}")
    if not wanted:
        raise ValueError("expected at least one layer, got an empty list")
    return wanted


def split_images(tokens: Tensor, grids: Sequence[Grid], merge: int) -> tuple[Tensor, ...]:
    """Tokens of a batch -> those of each image; `merge` is 1 for patches, m for visual tokens."""
    return tokens.split([t * h * w // merge**2 for t, h, w in grids])


def to_map(patches: Tensor, grid: Grid, merge: int) -> Tensor:
    """Patches of one image [t * h * w, d] in merge-block order -> [t, h, w, d].

    Merge-block order of 2 x 4 patches with m = 2:    0 1 4 5
                                                      2 3 6 7
    """
    t, h, w = grid
    blocks = patches.view(t, h // merge, w // merge, merge, merge, -1)
    return blocks.transpose(2, 3).reshape(t, h, w, -1)


def frames_in_reading_order(
    weights: Sequence[Tensor], plan: VisionPlan, grids: Sequence[Grid], merge: int
) -> list[Tensor]:
    """Attention matrices of segments -> one per frame, patches in reading order.

    Args:
        weights: [heads, l, l] of each segment; the segments of a frame follow each other.
        plan: the encoder's order of patches.
        grids: (t, h, w) of each image.
        merge: m.

    Returns:
        [t, heads, n, n] of each image; n counts the cls token, which comes first, if there is one.
    """
    n = sum(plan.patches_per_frame)
    numbers = plan.restore_patches(torch.arange(n, device=plan.positions.device), merge)
    segments, start, found = iter(weights), 0, []
    for (t, h, w), numbered in zip(grids, split_images(numbers, grids, 1), strict=True):
        frames = []
        for reading in to_map(numbered, (t, h, w), merge).view(t, h * w):
            parts, held = [], 0
            while held < h * w:
                parts.append(next(segments))
                held += parts[-1].shape[-1]
            matrix = torch.stack([torch.block_diag(*heads) for heads in zip(*parts, strict=True)])
            extra = held - h * w  # 1 with a cls token
            order = torch.cat([torch.arange(extra, device=reading.device), reading - start + extra])
            frames.append(matrix[:, order][:, :, order])
            start += h * w
        found.append(torch.stack(frames))
    return found


def check_pool(pool: str, has_cls: bool) -> None:
    """Raise a ValueError for an unknown pooling, or for "cls" if the encoder has no cls token."""
    if pool not in POOLS:
        raise ValueError(f"pool: expected one of {', '.join(POOLS)}, got {pool!r}")
    if pool == "cls" and not has_cls:
        raise ValueError(
            'pool "cls": this encoder has no cls token, all of its tokens are patches. Use "mean" or "max"'
        )


def pool_tokens(tokens: Sequence[Tensor], pool: str, cls: Sequence[Tensor] | None = None) -> Tensor:
    """One vector per image, [b, d].

    Args:
        tokens: [n_i, d] of each image.
        pool: "mean", "max" or "cls".
        cls: [frames, d] of each image if the encoder has a cls token; a clip takes the mean over its frames.

    Raises:
        ValueError: see `check_pool`.
    """
    check_pool(pool, has_cls=cls is not None)
    if pool == "max":
        return torch.stack([image.amax(0) for image in tokens])
    return torch.stack([image.mean(0) for image in (tokens if pool == "mean" else cls or ())])
