"""Mixture of experts: a router sends every token to k of E small MLPs.

Tokens are sorted by expert once, every expert multiplies its neighbours, and the results go back:

    chosen, k = 2   token 0: 2 0   token 1: 0 1          sorted   0: t0 t1 | 1: t1 | 2: t0

The router's softmax is computed in fp32; the k largest are taken and made to sum to 1, as in the reference.

n tokens, k experts per token, E experts, w model width, i inner width of an expert.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GroupedExperts(nn.Module):
    """E SwiGLU MLPs in two tensors, in the files' layout.

    Args:
        experts: E.
        width: w.
        inner: i.
    """

    def __init__(self, experts: int, width: int, inner: int) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(experts, 2 * inner, width))
        self.down = nn.Parameter(torch.empty(experts, width, inner))
        for weight in (self.gate_up, self.down):
            nn.init.normal_(weight, std=0.02)

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """x [tokens sorted by expert, w], of them counts[e] for expert e -> the same shape."""
        gate, up = grouped_linear(x, self.gate_up, counts).chunk(2, dim=-1)
        return grouped_linear(F.silu(gate) * up, self.down, counts)


class SparseMoE(nn.Module):
    """In the place of a layer's MLP.

    Args:
        router: w -> E, without bias.
        experts: the MLPs.
        top_k: k.
    """

    def __init__(self, router: nn.Linear, experts: GroupedExperts, top_k: int) -> None:
        super().__init__()
        self.router, self.experts, self.top_k = router, experts, top_k
        self.statistics: RouterStatistics | None = None

    @property
    def active_share(self) -> float:
        """Part of the experts' weights that a token meets."""
        return self.top_k / self.router.weight.shape[0]

    @torch.compiler.disable  # how many tokens an expert gets differs from batch to batch
    def forward(self, x: Tensor) -> Tensor:
        """[n, w] -> [n, w]."""
        logits = self.router(x)
        chances = F.softmax(logits, dim=-1, dtype=torch.float32)
        weights, chosen = chances.topk(self.top_k)
        weights = (weights / weights.sum(-1, keepdim=True)).to(x.dtype)
        if self.statistics is not None:
            self.statistics.record(self, chances, chosen)
        order = chosen.flatten().argsort(stable=True)
        counts = torch.bincount(chosen.flatten(), minlength=chances.shape[-1])
        out = self.experts(x.index_select(0, order // self.top_k), counts)
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        out = out.index_select(0, back).unflatten(0, (-1, self.top_k))
        return torch.bmm(weights.unsqueeze(1), out).squeeze(1)


def grouped_linear(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """Each expert's matrix on its own rows: [n, in], [E, out, in], [E] rows per expert -> [n, out].

    torch's grouped product on CUDA, without waiting for the counts; a product per expert elsewhere.
    """
    weight = weight.to(x.dtype)  # autocast does not know the grouped product
    if x.is_cuda:
        return F.grouped_mm(x, weight.transpose(1, 2), offs=counts.cumsum(0, dtype=torch.int32))
    out: Tensor = _ProductPerExpert.apply(x, weight, counts.tolist())
    return out


class _ProductPerExpert(torch.autograd.Function):
    """Every product goes straight into its place: no gradient of one expert is joined to the others'."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, counts: list[int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.counts = counts
        out = x.new_empty(len(x), weight.shape[1])
        for rows, into, matrix in zip(x.split(counts), out.split(counts), weight, strict=True):
            torch.mm(rows, matrix.T, out=into)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        grad_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        grads = grad.split(ctx.counts)
        if grad_x is not None:
            for rows, into, matrix in zip(grads, grad_x.split(ctx.counts), weight, strict=True):
                torch.mm(rows, matrix, out=into)
        if grad_weight is not None:
            for rows, given, into in zip(grads, x.split(ctx.counts), grad_weight, strict=True):
                torch.mm(rows.T, given, out=into)
        return grad_x, grad_weight, None


class RouterStatistics:
    """What the routers of one forward pass did, for the load-balance loss.

    A layer that is recomputed records the same again: entries are kept by layer.

    Args:
        real: [n] 1 for tokens, 0 for padding; None where there is no padding.
    """

    def __init__(self, real: Tensor | None = None) -> None:
        self.real = real
        self._of: dict[SparseMoE, tuple[Tensor, Tensor, Tensor]] = {}

    def record(self, layer: SparseMoE, chances: Tensor, chosen: Tensor) -> None:
        """chances [n, E] fp32, chosen [n, k]."""
        real = chances.new_ones(len(chances)) if self.real is None else self.real.to(chances.dtype)
        used = chances.new_zeros(chances.shape[-1])
        used = used.scatter_add(0, chosen.flatten(), real.repeat_interleave(chosen.shape[-1]))
        self._of[layer] = used, real @ chances, real.sum()

    def load_balance_loss(self) -> Tensor:
        """E * sum over experts of (share of tokens sent there) * (mean chance), all layers together.

        k for an even load, more for an uneven one. Source: Switch Transformers, arXiv:2101.03961, eq. 4-6.
        """
        used, chance, tokens = (torch.stack(part).sum(0) for part in zip(*self._of.values(), strict=True))
        return len(used) * (used / tokens) @ (chance / tokens)


def watch_routers(layers: Iterable[Any], real: Tensor | None) -> RouterStatistics | None:
    """Let the routers of these transformer layers record their next forward pass; None without a router."""
    moes = [layer.mlp for layer in layers if isinstance(layer.mlp, SparseMoE)]
    statistics = RouterStatistics(real)
    for moe in moes:
        moe.statistics = statistics
    return statistics if moes else None
