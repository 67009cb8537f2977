"""Copy tokens to their experts, apply the gate, and sum the results; each in one pass over memory.

Between the two matrix products of the experts, a token exists k times. The many small steps that plain torch
would take there (copies, intermediate products, sums by index) cost as much as a matrix product. Spreading
and collecting are each other's gradient, so both are gathers. A sum by index would have a random order on a
GPU. On the CPU the gate is computed for a few rows at a time, which stay in the cache.

n tokens, k copies of each, N = n * k rows, w width, i inner width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from torchtune_qwenvl.modules.norm import at_least_fp32

_ROWS = 512  # rows of the gate at a time: 2 MB of fp32 for an inner width of 512


def spread(x: Tensor, rows: Tensor, places: Tensor) -> Tensor:
    """[n, …] -> [N, …]: row j is a copy of x[rows[j]].

    Args:
        x: rows to copy.
        rows: int64 [N].
        places: int64 [n, k], the indices of the k copies of each row of x.
    """
    out: Tensor = _Spread.apply(x, rows, places)
    return out


def collect(x: Tensor, rows: Tensor, places: Tensor) -> Tensor:
    """[N, w] -> [n, w]: for each token the sum of its k rows. Arguments as for `spread`."""
    out: Tensor = _Collect.apply(x, rows, places)
    return out


def weighted_swiglu(gate_up: Tensor, weights: Tensor) -> Tensor:
    """silu(gate) * up * weight: gate and up as one [N, 2i], weights [N] -> [N, i], in gate_up's dtype."""
    if gate_up.is_cuda:
        gate, up = gate_up.chunk(2, dim=-1)
        return (F.silu(gate) * up * weights[:, None]).to(gate_up.dtype)
    out: Tensor = _WeightedSwiGLU.apply(gate_up, weights)
    return out


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, rows: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _sums(grad, *ctx.saved_tensors), None, None


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, rows: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return _sums(x, places)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad.index_select(0, *ctx.saved_tensors), None, None


def _sums(x: Tensor, places: Tensor) -> Tensor:
    """Sums of the rows of x at places[j]."""
    if x.dim() == 1 or places.shape[1] == 1:
        return x.index_select(0, places.flatten()).unflatten(0, places.shape).sum(1)
    return F.embedding_bag(places, x, mode="sum")


class _WeightedSwiGLU(torch.autograd.Function):
    """Keeps only its input; computes in fp32 and rounds once."""

    @staticmethod
    def forward(ctx, gate_up: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up, weights)
        out = gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)
        for both, weight, into in zip(*(x.split(_ROWS) for x in (gate_up, weights, out)), strict=True):
            gate, up = at_least_fp32(both).chunk(2, dim=-1)
            into.copy_(F.silu(gate).mul_(up).mul_(weight[:, None]))
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        """With s = sigmoid(gate), a = gate * s: d(a * up) = a d(up) + up * (s + a * (1 - s)) d(gate)."""
        gate_up, weights = ctx.saved_tensors
        to_both, to_weights = torch.empty_like(gate_up), torch.empty_like(weights)
        parts = (x.split(_ROWS) for x in (gate_up, weights, grad, to_both, to_weights))
        for both, weight, given, into, into_weight in zip(*parts, strict=True):
            gate, up = at_least_fp32(both).chunk(2, dim=-1)
            given = at_least_fp32(given)
            s = torch.sigmoid(gate)
            a = gate * s
            to_gate, to_up = into.chunk(2, dim=-1)
            into_weight.copy_((given * a * up).sum(-1))
            given = given * weight[:, None]
            to_up.copy_(given * a)
            to_gate.copy_(torch.addcmul(s, a, 1 - s).mul_(given).mul_(up))
        return to_both, to_weights
