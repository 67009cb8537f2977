"""Norms that return their input's dtype and keep only their input for the backward pass.

On CUDA, torch's fused kernels take bf16 activations and compute in fp32 inside. Two things keep them from it:
autocast, which would cast the activations to fp32 before and return fp32, and a scale of another dtype, for
which torch takes the slow path. So both norms turn autocast off and cast the scale.

torchtune's RMSNorm casts to fp32 first, and autograd keeps that copy and another one: for bf16 activations
four times what is needed. The CPU has no fused kernel, so the gradient is written out here. All of them
compute in fp32 and round once.

n tokens, w width. Source: Zhang and Sennrich 2019, arXiv:1910.07467.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchtune.modules import RMSNorm as _RMSNorm


class RMSNorm(_RMSNorm):
    """`x / sqrt(mean(x^2) + eps) * scale`, with torchtune's parameter and arguments."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., w] -> [..., w], in x's dtype."""
        if x.is_cuda:
            with torch.autocast("cuda", enabled=False):
                return F.rms_norm(x, self.normalized_shape, self.scale.to(x.dtype), self.eps)
        # torch 2.11 compiles `_Normalise`, which works in place, to a gradient of zero.
        if torch.compiler.is_compiling():
            return super().forward(x)
        return _Normalise.apply(x, self.scale, self.eps)


class CentredRMSNorm(RMSNorm):
    """`x / sqrt(mean(x^2) + eps) * (1 + scale)`: the scale starts at 0. The sum is taken in fp32.

    Args:
        dim: width.
        eps: added to the mean square.
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__(dim, eps)
        nn.init.zeros_(self.scale)

    def forward(self, x: Tensor) -> Tensor:
        """[..., w] -> [..., w], in x's dtype."""
        scale = 1 + at_least_fp32(self.scale)
        if torch.compiler.is_compiling():
            wide = at_least_fp32(x)
            return F.rms_norm(wide, self.normalized_shape, scale.to(wide.dtype), self.eps).to(x.dtype)
        return _Normalise.apply(x, scale, self.eps)


class LayerNorm(nn.LayerNorm):
    """torch's LayerNorm, with its arguments."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., w] -> [..., w], in x's dtype."""
        if not x.is_cuda:
            return super().forward(x)
        with torch.autocast("cuda", enabled=False):
            weight, bias = (None if p is None else p.to(x.dtype) for p in (self.weight, self.bias))
            return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor, eps: float) -> Tensor:
        wide = at_least_fp32(x)
        inverse = wide.square().mean(-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, scale, inverse)
        return (wide * inverse).mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        """With u = x * inverse, g = grad * scale: dx = inverse (g - u mean(g u)), dscale = sum(grad u)."""
        x, scale, inverse = ctx.saved_tensors
        unit, grad = at_least_fp32(x) * inverse, at_least_fp32(grad)
        pulled = grad * unit
        to_scale = pulled.flatten(0, -2).sum(0).to(scale.dtype)
        shared = (pulled * scale).mean(-1, keepdim=True)
        return (grad * scale).sub_(unit.mul_(shared)).mul_(inverse).to(x.dtype), to_scale, None


def at_least_fp32(x: Tensor) -> Tensor:
    """x in fp32; fp64 stays fp64."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
