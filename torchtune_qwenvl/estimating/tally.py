"""Seconds of forward and backward pass, and bytes kept between them, of products, norms and small kernels.

Every method stands for kernels that the model runs one by one, in bf16 with 2 bytes per value. A kernel takes
as long as its operations or its bytes, see `Card`. n rows, i and o input and output width, r rank of LoRA.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torchao.dtypes.nf4tensor import NF4Tensor

from torchtune_qwenvl.estimating.cards import Card
from torchtune_qwenvl.modules.adapters.nf4 import is_nf4

WIDE, HALF = 4, 2  # bytes of an fp32 and of a bf16 value
# Dequantising NF4 takes several small kernels: bytes that they move per weight, measured on fake tensors.
NF4_BYTES = 31.0
NF4_SCRATCH = 5.0  # bytes that they hold per weight meanwhile, likewise


@dataclass
class Tally:
    """Sums over the kernels of a layer.

    Attributes:
        card: the GPU.
        sharded: parameters are in bf16 where they are used, as FSDP gathers them; otherwise trained ones are
            in fp32 and are cast.
        forward, backward: seconds.
        kept: bytes that the forward pass keeps for the backward pass, without weights.
        extra: bytes that the backward pass holds in addition, at most.
        dequantised: bytes that dequantising the largest weight holds.
    """

    card: Card
    sharded: bool
    forward: float = 0.0
    backward: float = 0.0
    kept: float = 0.0
    extra: float = 0.0
    dequantised: float = 0.0

    def move(self, forward: float, backward: float = 0.0) -> None:
        """Kernels that move so many bytes in each pass."""
        self.forward += self.card.moving(forward) if forward else 0.0
        self.backward += self.card.moving(backward) if backward else 0.0

    def keep(self, *widths: float, rows: float, size: int = HALF) -> None:
        """Tensors [rows, width] stay until the backward pass."""
        self.kept += rows * size * sum(widths)

    def product(self, n: float, i: float, o: float, passes: int = 0, experts: int = 1) -> None:
        """[n, i] x [i, o] in the forward pass, and as many operations in so many passes of the backward."""
        moved = HALF * (n * i + n * o + experts * i * o)
        seconds = self.card.computing(2 * n * i * o, moved, self.card.matmul)
        self.forward += seconds
        self.backward += passes * seconds

    def norm(self, module: nn.Module | None, n: float, width: int, learns: bool) -> None:
        """A norm of [n, width]; keeps its input where something before it trains."""
        if module is None or not any(True for _ in module.parameters()):
            return
        learns = learns or trains(module)
        self.move(2 * HALF * n * width, 3 * HALF * n * width if learns else 0.0)
        if learns:
            self.keep(width, rows=n)
            self.keep(1, rows=n, size=WIDE)

    def linears(self, modules: Iterable[Any], n: float, learns: bool) -> None:
        """Linears that read the same [n, i]; kept once if any of them has weights that train."""
        found = list(modules)
        for module in found:
            self._linear(module, n, learns)
        i = found[0].weight.shape[-1]
        if any(trains(module) for module in found):
            self.keep(i, rows=n)
        if learns and len(found) > 1:  # their gradients of the input are summed
            self.move(0.0, 3 * HALF * n * i * (len(found) - 1))

    def _linear(self, module: Any, n: float, learns: bool) -> None:
        weight = module.weight
        o, i = weight.shape[-2:]
        self.product(n, i, o, int(learns) + int(weight.requires_grad))
        if is_nf4(weight):
            self.dequantised = max(self.dequantised, NF4_SCRATCH * weight.numel())
            self.move(NF4_BYTES * weight.numel(), NF4_BYTES * weight.numel() if learns else 0.0)
            if module.bias is not None:
                self.move(2 * HALF * n * o)
        elif weight.requires_grad and not self.sharded:  # to bf16, and the gradient back to fp32
            self.move((WIDE + HALF) * weight.numel(), (WIDE + HALF) * weight.numel())
        if module.bias is not None and module.bias.requires_grad:
            self.move(0.0, HALF * n * o)
        lora_a = getattr(module, "lora_a", None)
        if lora_a is not None:
            rank = lora_a.weight.shape[-2]
            self.product(n, i, rank, 1 + int(learns))
            self.product(n, rank, o, 2)
            self.keep(rank, rows=n)


def trains(module: nn.Module) -> bool:
    """Whether any parameter of a module trains."""
    return any(parameter.requires_grad for parameter in module.parameters())


def stored(parameter: torch.Tensor) -> float:
    """Bytes of a parameter; of one in NF4, those of its parts."""
    if isinstance(parameter, NF4Tensor):
        names = parameter.__tensor_flatten__()[0]
        return float(sum(stored(getattr(parameter, name)) for name in names))
    return float(parameter.numel() * parameter.element_size())
