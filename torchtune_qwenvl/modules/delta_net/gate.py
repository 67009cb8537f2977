"""The end of a delta net: RMSNorm of every head, times a gate of the layer's input, and a projection.

    y = x / sqrt(mean(x^2) + eps) * scale * silu(gate)

Only the inputs are kept for the backward pass. Both passes compute in fp32 and round once.

n tokens, w model width, h heads, e width of a head. Source: arXiv:2412.06464, figure 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchtune_qwenvl.modules.norm import at_least_fp32


class GatedOutput(nn.Module):
    """RMSNorm with a gate, between the gate's projection and the output's.

    Args:
        q_proj: w -> h * e, the gate. It is called so because the gate of gated attention is a part of that
            linear, too, and LoRA goes by names.
        output_proj: h * e -> w.
        width: e.
        eps: added to the mean square.
    """

    def __init__(self, *, q_proj: nn.Module, output_proj: nn.Module, width: int, eps: float) -> None:
        super().__init__()
        self.q_proj, self.output_proj = q_proj, output_proj
        self.scale = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """x [n, h, e] and gate [n, h * e] -> [n, w]."""
        gated = _GatedNorm.apply(x, gate.view_as(x), self.scale, self.eps)
        return self.output_proj(gated.flatten(1))


class _GatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, gate: Tensor, scale: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, gate, scale)
        ctx.eps = eps
        unit, _ = _unit(x, eps)
        return unit.mul_(at_least_fp32(scale)).mul_(F.silu(at_least_fp32(gate))).to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        """With u = x * inverse, s = silu(gate), f = grad * s * scale: dx = inverse (f - u mean(f u))."""
        x, gate, scale = ctx.saved_tensors
        unit, inverse = _unit(x, ctx.eps)
        wide_gate, wide_scale = at_least_fp32(gate), at_least_fp32(scale)
        grad = at_least_fp32(grad)
        to_gate = torch.ops.aten.silu_backward(grad * unit * wide_scale, wide_gate)
        grad = grad * F.silu(wide_gate)
        to_scale = (grad * unit).flatten(0, -2).sum(0)
        grad.mul_(wide_scale)
        shared = (grad * unit).mean(-1, keepdim=True)
        to_x = grad.sub_(unit.mul_(shared)).mul_(inverse)
        return to_x.to(x.dtype), to_gate.to(gate.dtype), to_scale.to(scale.dtype), None


def _unit(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    wide = at_least_fp32(x)
    inverse = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
    return wide * inverse, inverse
