"""Axial rotary embedding. Which position axis rotates which frequency is an argument, not code.

The first 2f of a head's d values form f pairs, (i, i + f) or neighbours (2i, 2i + 1); the others stay.
Pair i is rotated by `positions[axes[i]] * frequencies[i]`:

    ViT, head 80:      20 frequencies by the row, then the same 20 by the column
    decoder, head 128: 64 frequencies, the first 16 by t, the next 24 by h, the last 24 by w (M-RoPE)
    the same interleaved: t h w t h w … for 60 of them, the last 4 by t
    partial, head 128: 32 frequencies for the first 64 values, 8 by t, 12 by h, 12 by w

n tokens, a axes, f frequencies, h heads, d head width. Source: Su et al. 2021, arXiv:2104.09864; Qwen2-VL,
arXiv:2409.12191, section 2.1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Rotation(NamedTuple):
    """cos and sin [n, 1, f] of every token's angles, computed once per forward pass for all layers.

    With `neighbours`, pairs are (2i, 2i + 1) instead of (i, i + f).
    """

    cos: Tensor
    sin: Tensor
    neighbours: bool = False


class AxialRotary:
    """Angles of every token from its position on each axis.

    Not a module with buffers: its two short vectors stay on the host in fp32 when the model is cast by
    `.to(dtype)` or built on the meta device, and are copied to the device of the positions.

    Args:
        frequencies: [f] radians per position step, fp32.
        axes: for each frequency, the axis of the positions that rotates it.
        scale: factor on cos and sin (YaRN's attention factor).
        neighbours: which values of a head are a pair, see `Rotation`.
        by_length: (one more than the largest position, a tensor) -> frequencies [f] on its device, for rules
            that depend on it; None: always `frequencies`.
    """

    def __init__(
        self,
        frequencies: Tensor,
        axes: Sequence[int],
        scale: float = 1.0,
        neighbours: bool = False,
        by_length: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if len(axes) != len(frequencies):
            raise ValueError(
                f"one axis per frequency: got {len(axes)} axes for {len(frequencies)} frequencies"
            )
        self.scale, self.neighbours, self.by_length = scale, neighbours, by_length
        self._host = (frequencies.float(), torch.tensor(list(axes), device="cpu"))
        self._on: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def __call__(self, positions: Tensor, dtype: torch.dtype = torch.float32) -> Rotation:
        """Tables for `positions` [n, a]; angles are always computed in fp32, then cast to `dtype`."""
        device = positions.device
        if device not in self._on:
            frequencies, axes = self._host
            self._on[device] = (frequencies.to(device), axes.to(device))
        frequencies, axes = self._on[device]
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            if self.by_length is not None:
                frequencies = self.by_length(positions.max() + 1)
            angles = (positions.float().index_select(1, axes) * frequencies).unsqueeze(1)
            cos, sin = ((x * self.scale).to(dtype) for x in (angles.cos(), angles.sin()))
            return Rotation(cos, sin, self.neighbours)


class _Rotate(torch.autograd.Function):
    """Rotate pairs. The gradient is the rotation by the negative angle, so only the tables are kept."""

    @staticmethod
    def forward(ctx, x: Tensor, cos: Tensor, sin: Tensor, neighbours: bool) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.neighbours = neighbours
        return _turn(x, Rotation(cos, sin, neighbours), 1)

    @staticmethod
    def backward(ctx, grad: Tensor):
        cos, sin = ctx.saved_tensors
        return _turn(grad, Rotation(cos, sin, ctx.neighbours), -1), None, None, None


def _turn(x: Tensor, rotation: Rotation, sign: int) -> Tensor:
    """(a, b) -> (a cos - b sin, b cos + a sin), in the tables' dtype and back to x's."""
    cos, sin, _ = rotation
    out = torch.empty(x.shape, dtype=cos.dtype, device=x.device)
    a, b = _pairs(x.to(cos.dtype), rotation)
    out_a, out_b = _pairs(out, rotation)
    torch.mul(a, cos, out=out_a).addcmul_(b, sin, value=-sign)
    torch.mul(b, cos, out=out_b).addcmul_(a, sin, value=sign)
    turned = 2 * cos.shape[-1]
    out[..., turned:] = x[..., turned:]
    return out.to(x.dtype)


def _turn_compiled(x: Tensor, rotation: Rotation) -> Tensor:
    """`_turn` without writing into views, for torch.compile, which fuses it and derives the gradient."""
    cos, sin, neighbours = rotation
    a, b = _pairs(x.to(cos.dtype), rotation)
    pairs = (a * cos - b * sin, b * cos + a * sin)
    turned = torch.stack(pairs, -1).flatten(-2) if neighbours else torch.cat(pairs, -1)
    return torch.cat((turned, x[..., 2 * cos.shape[-1] :].to(cos.dtype)), -1).to(x.dtype)


def _pairs(x: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
    """Views of the first and the second values of all pairs, [..., d] -> two of [..., f]."""
    f = rotation.cos.shape[-1]
    if rotation.neighbours:
        return x[..., 0 : 2 * f : 2], x[..., 1 : 2 * f : 2]
    return x[..., :f], x[..., f : 2 * f]


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate queries or keys [n, h, d]; computed in the tables' dtype, returned in x's."""
    # torch 2.11 compiles a Function that writes into its own result, as `_Rotate` does, to one with a
    # gradient of zero.
    if torch.compiler.is_compiling():
        return _turn_compiled(x, rotation)
    return _Rotate.apply(x, *rotation)


def chunked_axes(sections: Sequence[int]) -> list[int]:
    """Neighbouring frequencies share an axis: [2, 1, 1] -> [0, 0, 1, 2]."""
    return [axis for axis, section in enumerate(sections) for _ in range(section)]


def interleaved_axes(sections: Sequence[int]) -> list[int]:
    """Axes alternate until used up, the first fills up: [4, 2, 2] -> [0, 1, 2, 0, 1, 2, 0, 0]."""
    axes = [0] * sum(sections)
    for axis, section in enumerate(sections[1:], start=1):
        axes[axis : section * len(sections) : len(sections)] = [axis] * section
    return axes


def inverse_frequencies(width: int, theta: float) -> Tensor:
    """Frequencies theta^(-2i / width) [width / 2], in fp32 on the host, computed as in transformers."""
    exponents = torch.arange(0, width, 2, dtype=torch.float, device="cpu") / width
    return 1.0 / theta**exponents
