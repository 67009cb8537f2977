"""LoRA without a pass over memory of its own: `W x + s B A x` in three matrix products.

    down = A x        [n, r], thin
    out  = W x        [n, out]
    out += s B down   the product adds into `out` while it writes: neither the sum nor the scale is a pass

torchtune's LoRALinear multiplies [n, out] by s and adds it to the base output, and autograd adds the two
gradients of x. These passes over memory took a fifth of a 7B step. Parameters, names and initialisation are
torchtune's.

n tokens, r rank, s = alpha / rank.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchao.dtypes.nf4tensor import linear_nf4
from torchtune.modules.low_precision import FrozenNF4Linear as _FrozenNF4Linear
from torchtune.modules.peft import LoRALinear as _LoRALinear

from torchtune_qwenvl.modules.adapters.nf4 import is_nf4

# x [..., in], weight [out, in], bias [out] or None -> [..., out]
Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class LoRALinear(_LoRALinear):
    """torchtune's LoRALinear, with its arguments.

    Attributes:
        product: computes the frozen part; None for the usual product.
    """

    product: Product | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_dim] -> [..., out_dim]."""
        if self.disabled:
            return (self.product or base_linear)(x, self.weight, self.bias)
        a, b, scale = self.lora_a.weight, self.lora_b.weight, self.alpha / self.rank
        return lora_linear(x, self.dropout(x), self.weight, self.bias, a, b, scale, self.product)


class FrozenNF4Linear(_FrozenNF4Linear):
    """torchtune's FrozenNF4Linear, with its arguments; the result has the input's dtype, with a bias too."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_dim] -> [..., out_dim]."""
        return base_linear(input, self.weight, self.bias)


def base_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` for a weight that may be quantised; an fp32 bias does not make the result fp32."""
    if not is_nf4(weight):
        return F.linear(x, weight, bias)
    out = linear_nf4(input=x.to(compute_dtype(x)), weight=weight)
    return out if bias is None else out + bias.to(out.dtype)


def lora_linear(
    x: Tensor,
    dropped: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    a: Tensor,
    b: Tensor,
    scale: float,
    product: Product | None = None,
) -> Tensor:
    """`x W^T + bias + scale * dropped A^T B^T`.

    Args:
        x: [..., in].
        dropped: x after dropout; x itself without dropout.
        weight: W [out, in], perhaps quantised.
        bias: [out] or None.
        a: A [r, in].
        b: B [out, r].
        scale: alpha / rank.
        product: computes `x W^T + bias` instead of the usual product.

    Returns:
        [..., out] in the compute dtype.
    """
    dtype, shape = compute_dtype(x), x.shape[:-1]
    a, b = a.to(dtype), b.to(dtype)
    usual = product is None and not is_nf4(weight)
    if dropped is x and usual and not torch.compiler.is_compiling():
        flat = x.to(dtype).flatten(0, -2)
        bias = None if bias is None else bias.to(dtype)
        out: Tensor = _LoRA.apply(flat, weight.to(dtype), bias, a, b, scale)
        return out.unflatten(0, shape)
    base = (product or base_linear)(x, weight, bias).flatten(0, -2)
    down = F.linear(dropped, a).flatten(0, -2)
    return torch.addmm(base, down, b.T, alpha=scale).unflatten(0, shape)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype that products of x are computed in: autocast's, or x's own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class _LoRA(torch.autograd.Function):
    """x [n, in] -> [n, out]; keeps x and [n, r]. All tensors have one dtype."""

    @staticmethod
    def forward(
        ctx, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        down = x @ a.T
        ctx.save_for_backward(x, weight, a, b, down)
        ctx.scale = scale
        return F.linear(x, weight, bias).addmm_(down, b.T, alpha=scale)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight, a, b, down = ctx.saved_tensors
        wants_x, wants_weight, wants_bias, wants_a, wants_b, _ = ctx.needs_input_grad
        to_down = (grad @ b).mul_(ctx.scale)  # thin: computed also where nothing needs it
        to_x = (grad @ weight).addmm_(to_down, a) if wants_x else None
        return (
            to_x,
            grad.T @ x if wants_weight else None,
            grad.sum(0) if wants_bias else None,
            to_down.T @ x if wants_a else None,
            (grad.T @ down).mul_(ctx.scale) if wants_b else None,
            None,
        )
