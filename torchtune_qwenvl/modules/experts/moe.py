"""Mixture of experts: a router sends every token to k of E small MLPs.

Tokens are sorted by expert, each expert multiplies its rows, and the results go back to their tokens:

    chosen, k = 2   token 0: 2 0   token 1: 0 1          sorted   0: t0 t1 | 1: t1 | 2: t0

A token's weight for an expert is applied between the expert's two matrix products, where rows are narrowest.
Then the results only have to be summed, and none is kept for the gradient of the weights.

n tokens, k experts per token, E experts, w model width, i inner width of an expert, r rank of LoRA.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchtune.modules import FeedForward

from torchtune_qwenvl.modules.adapters.lora import Adapter
from torchtune_qwenvl.modules.experts.dispatch import collect, spread, weighted_swiglu
from torchtune_qwenvl.modules.experts.grouped import GroupedLinear, make_grouped_linear
from torchtune_qwenvl.modules.experts.routers import Router, RouterStatistics


class GroupedExperts(nn.Module):
    """E SwiGLU MLPs in two tensors, as in the files: `w1` is gate and up [E, 2i, w], `w2` down [E, w, i].

    Args:
        experts: E.
        width: w.
        inner: i.
        adapter: LoRA on both; each expert has its own matrices.
    """

    def __init__(self, experts: int, width: int, inner: int, adapter: Adapter | None = None) -> None:
        super().__init__()
        self.w1: GroupedLinear = make_grouped_linear("w1", experts, width, 2 * inner, adapter)
        self.w2: GroupedLinear = make_grouped_linear("w2", experts, inner, width, adapter)

    def forward(self, x: Tensor, counts: Tensor, weights: Tensor) -> Tensor:
        """x [N, w] sorted by expert, counts[e] rows for expert e, weights [N] -> [N, w], weighted."""
        return self.w2(weighted_swiglu(self.w1(x, counts), weights), counts)


class SparseMoE(nn.Module):
    """A mixture of experts, used as the MLP of a layer.

    Args:
        router: tokens -> experts and weights.
        experts: the MLPs.
        shared: an MLP that every token goes through in addition.
        shared_gate: w -> 1, whose sigmoid weighs what `shared` gives; None: it counts whole.
    """

    def __init__(
        self,
        router: Router,
        experts: GroupedExperts,
        shared: FeedForward | None = None,
        shared_gate: nn.Linear | None = None,
    ) -> None:
        super().__init__()
        self.router, self.experts = router, experts
        self.shared, self.shared_gate = shared, shared_gate

    @property
    def active_share(self) -> float:
        """Fraction of the experts' weights that a token uses."""
        return self.router.top_k / self.router.out_features

    @torch.compiler.disable  # the number of tokens of an expert differs from batch to batch
    def forward(self, x: Tensor, statistics: RouterStatistics | None = None) -> Tensor:
        """[n, w] -> [n, w]; what the router does goes into `statistics`, if given."""
        weights, chosen, logits = self.router(x)
        if statistics is not None:
            statistics.record(self, logits.softmax(-1, dtype=torch.float32), chosen)
        order = chosen.flatten().argsort(stable=True)
        # Not torch.bincount, for whose result the host would wait.
        counts = order.new_zeros(logits.shape[-1]).scatter_add_(0, chosen.flatten(), torch.ones_like(order))
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        token, places = order // chosen.shape[-1], back.view_as(chosen)
        sorted_weights = spread(weights.flatten(), order, back[:, None])
        out = collect(self.experts(spread(x, token, places), counts, sorted_weights), token, places)
        if self.shared is None:
            return out
        if self.shared_gate is None:
            return out + self.shared(x)
        return out + self.shared_gate(x).sigmoid() * self.shared(x)
