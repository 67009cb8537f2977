"""Where each patch of a batch is: attention segments, window order, rotary positions. Computed on the host.

Patches come in merge-block order: the m x m patches of one visual token are neighbours. With window attention
the visual tokens of a frame are reordered once, window by window. Full windows come first, so that windows of
equal length are neighbours. A frame of 5 x 6 visual tokens in windows of 4 x 4:

    A A A A B B        window lengths, in visual tokens: A 16, B 8, C 4, D 2
    A A A A B B        edge windows are smaller; there are none if the side is a multiple of the window
    A A A A B B
    A A A A B B
    C C C C D D

m merge size, n patches, t, h, w frames, rows and columns of patches in one image or clip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from torchtune_qwenvl.modules.attention import Segments

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class VisionPlan:
    """What the encoder needs to know about the grids of one batch.

    Attributes:
        positions: [n, 2] row and column of every patch, in the order in which the encoder takes them.
        frames: segments of full attention.
        windows: segments of windowed attention; the same as `frames` if the encoder has no windows.
        patches_per_frame: how many patches each frame has.
        order: [n / m^2] indices that sort visual tokens window by window; None without windows.
        restore: inverse of `order`.
    """

    positions: Tensor
    frames: Segments
    windows: Segments
    patches_per_frame: tuple[int, ...]
    order: Tensor | None = None
    restore: Tensor | None = None

    def restore_tokens(self, tokens: Tensor) -> Tensor:
        """Visual tokens [n / m^2, ..] from the encoder's order to the order of the grids."""
        return tokens if self.restore is None else tokens.index_select(0, self.restore)

    def restore_patches(self, patches: Tensor, merge: int) -> Tensor:
        """The same for patches [n, ..]."""
        if self.restore is None:
            return patches
        return self.restore_tokens(patches.unflatten(0, (-1, merge * merge))).flatten(0, 1)


def read_grids(grid_thw: Tensor | Sequence[Sequence[int]]) -> tuple[Grid, ...]:
    """Grids as integers on the host; waits for the device if the tensor is on one."""
    rows = grid_thw.tolist() if isinstance(grid_thw, Tensor) else grid_thw
    return tuple((int(t), int(h), int(w)) for t, h, w in rows)


def plan_vision(
    grids: Sequence[Grid], merge: int, window: int | None, device: torch.device, extra: int = 0
) -> VisionPlan:
    """Plan for a batch of grids (t, h, w) in patches.

    Args:
        grids: one per image or clip.
        merge: m.
        window: side of an attention window in visual tokens, or None.
        device: for the tensors of the plan.
        extra: tokens that the encoder puts in front of every frame; they attend with it.

    Raises:
        ValueError: a grid is empty, or a side is not a multiple of m.
    """
    for t, h, w in grids:
        if min(t, h, w) < 1 or h % merge or w % merge:
            raise ValueError(
                f"grid_thw has an entry {(t, h, w)}: expected positive numbers of frames, rows and "
                f"columns of patches, rows and columns in multiples of the merge size {merge}"
            )
    frames = [_frame(h, w, merge, window) for t, h, w in grids for _ in range(t)]
    positions = torch.cat([frame.positions for frame in frames])
    lengths = tuple(len(frame.positions) for frame in frames)
    full = Segments.of([extra + length for length in lengths], device)
    if window is None:
        return VisionPlan(positions.to(device, non_blocking=True), full, full, lengths)
    starts, total = [], 0
    for frame in frames:
        starts.append(total)
        total += len(frame.order)
    order = torch.cat([frame.order + start for frame, start in zip(frames, starts, strict=True)])
    windows = Segments.of([length for frame in frames for length in frame.windows], device)
    on_device = [x.to(device, non_blocking=True) for x in (positions, order, torch.argsort(order))]
    return VisionPlan(on_device[0], full, windows, lengths, on_device[1], on_device[2])


@dataclass(frozen=True)
class _Frame:
    """The plan of one frame: positions [h w, 2], order [h w / m^2], patches per window."""

    positions: Tensor
    order: Tensor
    windows: tuple[int, ...]


@lru_cache(maxsize=1024)
def _frame(h: int, w: int, merge: int, window: int | None) -> _Frame:
    rows = torch.arange(h, device="cpu")[:, None].expand(h, w)
    columns = torch.arange(w, device="cpu").expand(h, w)
    blocks = torch.stack([rows, columns], -1).view(h // merge, merge, w // merge, merge, 2)
    positions = blocks.transpose(1, 2).reshape(-1, merge * merge, 2)
    order, windows = _windows(h // merge, w // merge, window or max(h, w))
    return _Frame(positions[order].flatten(0, 1), order, tuple(n * merge * merge for n in windows))


def _windows(h: int, w: int, side: int) -> tuple[Tensor, list[int]]:
    """Order of h x w visual tokens, window by window, largest windows first, and tokens per window."""
    index = torch.arange(h * w, device="cpu").view(h, w)
    cut = [part.flatten() for band in index.split(side, 0) for part in band.split(side, 1)]
    cut.sort(key=len, reverse=True)
    return torch.cat(cut), [len(part) for part in cut]
