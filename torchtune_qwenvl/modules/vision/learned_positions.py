"""Learned positions of patches: a square table, interpolated to the grid of each frame.

The interpolation is given as one matrix [length, side] per direction: the weight of each row of the table
in each row of the grid. Applying one direction after the other is two-dimensional interpolation:

    grid [h, w] = rows [h, side] x table [side, side] x columns [w, side] transposed

t frames, h, w rows and columns of patches, m merge size, d width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor, nn

from torchtune_qwenvl.modules.vision.plan import Grid


class LearnedPositions(nn.Module):
    """A table of side x side learned positions; its weight [side * side, d] is interpolated in fp32.

    Args:
        side: rows and columns of the table.
        width: d.
        stretch: (length, side) -> fp32 interpolation matrix [length, side] on the host.
        std: of the normal distribution that the table starts from.
    """

    def __init__(
        self, *, side: int, width: int, stretch: Callable[[int, int], Tensor], std: float = 0.02
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(side * side, width))
        nn.init.normal_(self.weight, std=std)
        self.side, self.stretch = side, stretch

    def forward(
        self,
        grids: Sequence[Grid],
        merge: int,
        device: torch.device,
        stretched: Mapping[int, Tensor] | None = None,
    ) -> Tensor:
        """Positions of all patches; all frames of a grid have the same.

        Args:
            grids: (t, h, w) per image or clip.
            merge: m.
            device: where the patches are.
            stretched: length -> `stretch(length, side)` on the device; made here if left out.

        Returns:
            [sum of t * h * w, d] in fp32, in merge-block order.
        """
        with torch.autocast(device.type, enabled=False):
            table = self.weight.float().view(self.side, self.side, -1)
            if stretched is None:
                lengths = {length for _, *sides in grids for length in sides}
                stretched = {n: self.stretch(n, self.side).to(device, non_blocking=True) for n in lengths}
            shapes = {(h, w) for _, h, w in grids}
            frames = {(h, w): _stretch(table, stretched[h], stretched[w], merge) for h, w in shapes}
            return torch.cat([frames[h, w] for t, h, w in grids for _ in range(t)])


def _stretch(table: Tensor, rows: Tensor, columns: Tensor, merge: int) -> Tensor:
    """[side, side, d], [h, side], [w, side] -> [h * w, d] in merge-block order."""
    grid = torch.einsum("hi,ijd,wj->hwd", rows, table, columns)
    return grid.unflatten(1, (-1, merge)).unflatten(0, (-1, merge)).transpose(1, 2).flatten(0, 3)


@lru_cache(maxsize=1024)
def bilinear(length: int, side: int) -> Tensor:
    """Matrix [length, side] of linear interpolation from corner to corner (`align_corners=True`)."""
    place = torch.arange(length, dtype=torch.float64, device="cpu") * (side - 1) / max(length - 1, 1)
    first = place.long()
    matrix = torch.zeros(length, side, dtype=torch.float64, device="cpu")
    matrix.scatter_add_(1, first[:, None], (1 - (place - first))[:, None])
    matrix.scatter_add_(1, (first + 1).clamp(max=side - 1)[:, None], (place - first)[:, None])
    return matrix.float()


@lru_cache(maxsize=1024)
def bicubic(length: int, side: int) -> Tensor:
    """Matrix [length, side] of bicubic interpolation, with pixel centres at halves and a repeated border.

    The same as torch's `grid_sample(mode="bicubic", align_corners=False, padding_mode="border")`. As a
    matrix it is computed once per side instead of once per patch, and its backward pass needs no atomics. It
    is made in fp64, because coordinates in fp32 make the result ten times less exact.
    """
    step = torch.arange(length, dtype=torch.float64, device="cpu")
    centre = (step + 0.5) * side / length - 0.5
    first = centre.floor()
    beyond = centre - first
    matrix = torch.zeros(length, side, dtype=torch.float64, device="cpu")
    for tap in range(-1, 3):
        weight = _cubic((beyond - tap).abs())
        column = (first.long() + tap).clamp(0, side - 1)
        matrix.scatter_add_(1, column[:, None], weight[:, None])
    return matrix.float()


def _cubic(distance: Tensor, a: float = -0.75) -> Tensor:
    """Keys' cubic convolution kernel for distances of 0 to 2, with torch's value of `a`."""
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return torch.where(distance <= 1, near, far)
