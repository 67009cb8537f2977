"""Queries, keys and values of a delta net: projections, a causal convolution of every channel, SiLU.

    y_t = silu(sum_i weight[-1 - i] * x_{t-i})      x before the segment's first token is 0

Only the input is kept for the backward pass. Both passes compute in fp32 and round once.

n tokens, w model width, c channels, k taps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchtune_qwenvl.modules.delta_net.plan import ChunkPlan
from torchtune_qwenvl.modules.norm import at_least_fp32


class ConvolvedProjections(nn.Module):
    """Three projections, and the kernels of the convolution over their results.

    Args:
        q_proj: w -> m * d.
        k_proj: w -> m * d.
        v_proj: w -> h * e.
        widths: m * d, m * d and h * e.
        taps: k.
    """

    def __init__(
        self, *, q_proj: nn.Module, k_proj: nn.Module, v_proj: nn.Module, widths: Sequence[int], taps: int
    ) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = q_proj, k_proj, v_proj
        self.widths, self.taps = list(widths), taps
        self.weight = nn.Parameter(torch.empty(sum(widths), taps))
        nn.init.uniform_(self.weight, -(taps**-0.5), taps**-0.5)  # as torch does for a convolution

    def forward(self, x: Tensor) -> list[Tensor]:
        """x [n, w] -> queries, keys and values before the convolution."""
        return [projection(x) for projection in (self.q_proj, self.k_proj, self.v_proj)]

    def over_segments(self, qkv: Sequence[Tensor], plan: ChunkPlan) -> list[Tensor]:
        """Queries, keys and values after the convolution."""
        kernels = self.weight.split(self.widths)
        return [causal_convolution(x, kernel, plan) for x, kernel in zip(qkv, kernels, strict=True)]

    def step(self, qkv: Sequence[Tensor], before: Tensor) -> tuple[Tensor, ...]:
        """The same for one token per row; see `convolution_step`."""
        return convolution_step(torch.cat(list(qkv), -1), before, self.weight).split(self.widths, -1)


def causal_convolution(x: Tensor, weight: Tensor, plan: ChunkPlan) -> Tensor:
    """Convolution over segments, and SiLU.

    Args:
        x: [n, c].
        weight: [c, k]; the last column is for the token itself.
        plan: of the segments, made for k taps.

    Returns:
        [n, c], in x's dtype.
    """
    return _Convolution.apply(x, weight, plan)


def convolution_step(x: Tensor, before: Tensor, weight: Tensor) -> Tensor:
    """The same for one token per row.

    Args:
        x: [b, c].
        before: [b, k - 1, c], the rows' last tokens; x takes the place of the oldest.
        weight: [c, k].

    Returns:
        [b, c].
    """
    window = torch.cat([before, x[:, None].to(before.dtype)], dim=1)
    before.copy_(window[:, 1:])
    mixed = (at_least_fp32(window) * at_least_fp32(weight).T).sum(1)
    return F.silu(mixed).to(x.dtype)


def _mix(x: Tensor, weight: Tensor, plan: ChunkPlan) -> Tensor:
    """The sum before SiLU, in fp32. `x` is a copy in fp32, whose ends of segments become 0."""
    taps = weight.shape[1]
    out = x * weight[:, -1]
    for shift in range(1, min(taps, len(x))):
        x.index_fill_(0, plan.last[shift - 1], 0)  # what would reach into the next segment
        out[shift:].addcmul_(x[:-shift], weight[:, -1 - shift])
    return out


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, plan: ChunkPlan) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.plan = plan
        with torch.autocast(x.device.type, enabled=False):
            return F.silu(_mix(_copy(x), at_least_fp32(weight), plan), inplace=True).to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        plan, taps, wide = ctx.plan, weight.shape[1], at_least_fp32(weight)
        with torch.autocast(x.device.type, enabled=False):
            mixed = _mix(_copy(x), wide, plan)
            grad = torch.ops.aten.silu_backward(at_least_fp32(grad), mixed)
            dtype, x = x.dtype, at_least_fp32(x)
            to_x = grad * wide[:, -1]
            to_weight = torch.zeros_like(wide)
            to_weight[:, -1] = (grad * x).sum(0)
            for shift in range(1, min(taps, len(x))):
                grad.index_fill_(0, plan.first[shift - 1], 0)
                to_x[:-shift].addcmul_(grad[shift:], wide[:, -1 - shift])
                to_weight[:, -1 - shift] = (grad[shift:] * x[:-shift]).sum(0)
        return to_x.to(dtype), to_weight.to(weight.dtype), None


def _copy(x: Tensor) -> Tensor:
    return x.clone() if x.dtype in (torch.float32, torch.float64) else x.float()
