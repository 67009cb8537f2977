"""Linears of which every expert has one: E matrices in one tensor, each for its own rows.

n rows sorted by expert, E experts, r rank of LoRA.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchtune_qwenvl.modules.adapters.lora import Adapter


class GroupedLinear(nn.Module):
    """Without bias.

    Args:
        experts: E.
        in_dim: width of a row.
        out_dim: width of what becomes of it.
    """

    def __init__(self, experts: int, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, out_dim, in_dim))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """x [n, in], of them counts[e] for expert e -> [n, out]."""
        return grouped_linear(x, self.weight, counts)


class GroupedLoRALinear(GroupedLinear):
    """`x -> W_e x + alpha / rank * B_e A_e x`, torchtune's LoRALinear once per expert.

    Args:
        experts, in_dim, out_dim: of `GroupedLinear`.
        rank: r of every expert.
        alpha: the update is scaled by alpha / rank.
        dropout: before A.
    """

    def __init__(
        self, experts: int, in_dim: int, out_dim: int, rank: int, alpha: float, dropout: float = 0.0
    ) -> None:
        super().__init__(experts, in_dim, out_dim)
        self.rank, self.alpha = rank, alpha
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.lora_a = GroupedLinear(experts, in_dim, rank)
        self.lora_b = GroupedLinear(experts, rank, out_dim)
        init_lora_a(self.lora_a.weight)
        nn.init.zeros_(self.lora_b.weight)

    def adapter_params(self) -> list[str]:
        """Where torchtune's recipes look for the names of LoRA's parameters."""
        return ["lora_a.weight", "lora_b.weight"]

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """As `GroupedLinear`."""
        update = self.lora_b(self.lora_a(self.dropout(x), counts), counts)
        return super().forward(x, counts) + (self.alpha / self.rank) * update


def make_grouped_linear(
    name: str, experts: int, in_dim: int, out_dim: int, adapter: Adapter | None
) -> GroupedLinear:
    """The linear called `name` of every expert, with LoRA where it is asked for."""
    if adapter is None or name not in adapter.targets:
        return GroupedLinear(experts, in_dim, out_dim)
    return GroupedLoRALinear(experts, in_dim, out_dim, adapter.rank, adapter.alpha, adapter.dropout)


@torch.no_grad()
def init_lora_a(weight: Tensor) -> None:
    """LoRA's first A [.., r, in] as torchtune draws it, for a stack of matrices too."""
    nn.init.kaiming_uniform_(weight.flatten(0, -2), a=math.sqrt(5))


def grouped_linear(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """Each expert's matrix on its own rows: [n, in], [E, out, in], [E] rows per expert -> [n, out].

    torch's grouped product on CUDA, without waiting for the counts; a product per expert elsewhere, and for
    widths that it does not take.
    """
    weight = weight.to(x.dtype)  # autocast does not know the grouped product
    if x.is_cuda and grouped_mm_takes(weight):
        return F.grouped_mm(x, weight.transpose(1, 2), offs=counts.cumsum(0, dtype=torch.int32))
    out: Tensor = _ProductPerExpert.apply(x, weight, counts.tolist())
    return out


def grouped_mm_takes(weight: Tensor) -> bool:
    """Whether rows of [E, out, in] and of what goes in and comes out are multiples of 16 bytes: of LoRA's
    matrices in bf16 those are whose rank is a multiple of 8.
    """
    return all(width * weight.element_size() % 16 == 0 for width in weight.shape[1:])


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
