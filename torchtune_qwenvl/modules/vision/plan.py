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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor

from torchtune_qwenvl.modules.attention import Segments, boundaries_of

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
        stretched: length -> interpolation matrix [length, side] of the table of learned positions.
    """

    positions: Tensor
    frames: Segments
    windows: Segments
    patches_per_frame: tuple[int, ...]
    order: Tensor | None = None
    restore: Tensor | None = None
    stretched: Mapping[int, Tensor] = field(default_factory=dict)

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


@dataclass(frozen=True)
class LearnedTable:
    """How an encoder's table of learned positions is stretched, see `LearnedPositions`.

    Attributes:
        side: rows and columns of the table.
        stretch: (length, side) -> fp32 interpolation matrix [length, side] on the host.
    """

    side: int
    stretch: Callable[[int, int], Tensor]


@dataclass(frozen=True)
class VisionPlanner:
    """Makes the plans of one encoder. Small and picklable, so that data workers can plan for the device.

    All numbers of a plan are in one int32 tensor, made by `pack`: that is one copy to the device, which the
    host does not wait for if the tensor is pinned with its batch. Fractions are in it bit by bit.

    Args:
        merge: m.
        window: side of an attention window in visual tokens, or None.
        extra: tokens that the encoder puts in front of every frame; they attend with it.
        table: of the encoder's learned positions, or None.
    """

    merge: int
    window: int | None = None
    extra: int = 0
    table: LearnedTable | None = None

    def pack(self, grids: Sequence[Grid]) -> Tensor:
        """The numbers of a plan, int32 on the host.

        Args:
            grids: (t, h, w) in patches, one per image or clip.

        Raises:
            ValueError: a grid is empty, or a side is not a multiple of m.
        """
        frames = self._frames(grids)
        parts = [torch.cat([frame.positions for frame in frames]).flatten()]
        parts += [boundaries_of(lengths) for lengths in self._segments(frames)]
        if self.window is not None:
            starts = accumulate((len(frame.order) for frame in frames[:-1]), initial=0)
            order = torch.cat([frame.order + start for frame, start in zip(frames, starts, strict=True)])
            parts += [order, torch.argsort(order)]
        packed = [part.to(torch.int32) for part in parts]
        if self.table is not None:
            matrices = [self.table.stretch(n, self.table.side) for n in _lengths(grids)]
            packed += [matrix.flatten().view(torch.int32) for matrix in matrices]
        return torch.cat(packed)

    def plan(self, grids: Sequence[Grid], device: torch.device, packed: Tensor | None = None) -> VisionPlan:
        """The plan for a batch of grids.

        Args:
            grids: as in `pack`.
            device: for the tensors of the plan.
            packed: what `pack` returned for these grids, already on the device; made here if left out.

        Raises:
            ValueError: see `pack`; or `packed` is of other grids or of another encoder.
        """
        frames = self._frames(grids)
        if packed is None:
            packed = self.pack(grids).to(device, non_blocking=True)
        sizes = self._sizes(frames, grids)
        if sum(sizes.values()) != len(packed):
            raise ValueError(
                f"plan: expected {sum(sizes.values())} numbers for the grids {tuple(grids)}, got "
                f"{len(packed)}: pack and plan must be of the same encoder and get the same batch"
            )
        parts = dict(zip(sizes, packed.split(list(sizes.values())), strict=True))
        segments = [
            Segments.of(lengths, device, parts[name])
            for name, lengths in zip(("frames", "windows"), self._segments(frames), strict=False)
        ]
        stretched = {
            length: parts[length].view(torch.float32).view(length, -1)
            for length in sizes
            if isinstance(length, int)
        }
        return VisionPlan(
            parts["positions"].view(-1, 2),
            segments[0],
            segments[-1],
            tuple(len(frame.positions) for frame in frames),
            parts.get("order"),
            parts.get("restore"),
            stretched,
        )

    def _sizes(self, frames: Sequence[_Frame], grids: Sequence[Grid]) -> dict[str | int, int]:
        """What a packed plan consists of, and how many numbers each has; matrices are named by length."""
        patches = sum(len(frame.positions) for frame in frames)
        sizes: dict[str | int, int] = {"positions": 2 * patches}
        for name, lengths in zip(("frames", "windows"), self._segments(frames), strict=False):
            sizes[name] = len(lengths) + 1
        if self.window is not None:
            sizes |= dict.fromkeys(("order", "restore"), patches // self.merge**2)
        if self.table is not None:
            sizes |= {length: length * self.table.side for length in _lengths(grids)}
        return sizes

    def _frames(self, grids: Sequence[Grid]) -> list[_Frame]:
        for t, h, w in grids:
            if min(t, h, w) < 1 or h % self.merge or w % self.merge:
                raise ValueError(
                    f"grid_thw has an entry {(t, h, w)}: expected positive numbers of frames, rows and "
                    f"columns of patches, rows and columns in multiples of the merge size {self.merge}"
                )
        return [_frame(h, w, self.merge, self.window) for t, h, w in grids for _ in range(t)]

    def _segments(self, frames: Sequence[_Frame]) -> list[list[int]]:
        """Lengths of the segments of full attention, and those of windowed attention if there is any."""
        whole = [self.extra + len(frame.positions) for frame in frames]
        if self.window is None:
            return [whole]
        return [whole, [length for frame in frames for length in frame.windows]]


def _lengths(grids: Sequence[Grid]) -> tuple[int, ...]:
    """All different numbers of rows and columns."""
    return tuple(sorted({side for _, *sides in grids for side in sides}))


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
