"""A linear per expert: E matrices in one tensor, each applied to the rows of its expert.

n rows sorted by expert, E experts, r rank of LoRA.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchtune_qwenvl.modules.adapters.lora import Adapter


class GroupedLinear(nn.Module):
    """A linear without bias for each expert.

    Args:
        experts: E.
        in_dim: input width.
        out_dim: output width.
    """

    def __init__(self, experts: int, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, out_dim, in_dim))
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """x [n, in], of which counts[e] rows are for expert e -> [n, out]."""
        return grouped_linear(x, self.weight, counts)


class GroupedLoRALinear(GroupedLinear):
    """`x -> W_e x + alpha / rank * B_e A_e x`: torchtune's LoRALinear for each expert.

    Args:
        experts, in_dim, out_dim: see `GroupedLinear`.
        rank: r of every expert.
        alpha: the update is multiplied by alpha / rank.
        dropout: applied to the input of A.
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
        """Names of LoRA's parameters; torchtune's recipes ask for them here."""
        return ["lora_a.weight", "lora_b.weight"]

    def forward(self, x: Tensor, counts: Tensor) -> Tensor:
        """As `GroupedLinear`."""
        down = (self.alpha / self.rank) * self.lora_a(self.dropout(x), counts)  # scaled where it is thin
        return super().forward(x, counts).add_(self.lora_b(down, counts))


def make_grouped_linear(
    name: str, experts: int, in_dim: int, out_dim: int, adapter: Adapter | None
) -> GroupedLinear:
    """The linear called `name` of every expert, with LoRA if `name` is a target of the adapter."""
    if adapter is None or name not in adapter.targets:
        return GroupedLinear(experts, in_dim, out_dim)
    return GroupedLoRALinear(experts, in_dim, out_dim, adapter.rank, adapter.alpha, adapter.dropout)


@torch.no_grad()
def init_lora_a(weight: Tensor) -> None:
    """Initialise LoRA's A [.., r, in] as torchtune does, also for a stack of matrices."""
    nn.init.kaiming_uniform_(weight.flatten(0, -2), a=math.sqrt(5))


def grouped_linear(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """Multiply rows by the matrix of their expert: [n, in], [E, out, in], [E] rows per expert -> [n, out].

    On CUDA this is torch's grouped product, which does not wait for the counts. On other devices, and for
    widths that the grouped product does not take, it is one product per expert.
    """
    weight = weight.to(x.dtype)  # autocast does not cover the grouped product
    if x.is_cuda and grouped_mm_takes(weight):
        half = not torch.is_autocast_enabled("cuda") or x.dtype == torch.get_autocast_dtype("cuda")
        assert half, f"under autocast the experts get {x.dtype}: what is before them must not return fp32"
        return F.grouped_mm(x, weight.transpose(1, 2), offs=counts.cumsum(0, dtype=torch.int32))
    out: Tensor = _ProductPerExpert.apply(x, weight, counts.tolist())
    return out


def grouped_mm_takes(weight: Tensor) -> bool:
    """Whether the rows of weight [E, out, in], input and output are multiples of 16 bytes.

    For LoRA's matrices in bf16 this means a rank that is a multiple of 8.
    """
    return all(width * weight.element_size() % 16 == 0 for width in weight.shape[1:])


class _ProductPerExpert(torch.autograd.Function):
    """Writes each product directly into the result, so that nothing has to be concatenated."""

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
