"""Matrix products of a decoder's large linears in float8, by torchao.

Trained linears become torchao's Float8Linear. Frozen ones, with or without LoRA, get a product of their own:
torchao's would also compute the gradient of the weight, a third of the work. Parameters keep their names,
dtypes and values; only the products change. Each call scales inputs, weights and gradients to what float8
holds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torchao.float8 import Float8LinearConfig, convert_to_float8_training
from torchao.float8.config import CastConfig
from torchao.float8.float8_linear import Float8Linear
from torchao.float8.float8_scaling_utils import get_maybe_axiswise_dim, hp_tensor_to_float8_dynamic
from torchao.float8.float8_training_tensor import GemmInputRole

from torchtune_qwenvl.modules.adapters.dora import DoRALinear
from torchtune_qwenvl.modules.adapters.lora import is_adapter
from torchtune_qwenvl.modules.adapters.lora_linear import LoRALinear, compute_dtype
from torchtune_qwenvl.modules.adapters.nf4 import is_nf4

SCALINGS = ("tensorwise", "rowwise")
# Below this width a product in float8 saves less than the casts cost (torchao's advice).
SMALLEST = 1024
_STEP = 16  # widths that the kernels take


def use_float8(decoder: nn.Module, scaling: str, device: torch.device, smallest: int = SMALLEST) -> int:
    """Let the decoder's large linears multiply in float8; call before layers are compiled or sharded.

    Args:
        decoder: whose layers are converted; embedding, output head, routers and experts stay as they are.
        scaling: "tensorwise", one scale per tensor, is faster; "rowwise", one per row, loses less.
        device: that trains. On the CPU the rounding is the same, and products are computed in fp32 or bf16.
        smallest: width of the smallest linears that take part.

    Returns:
        How many linears take part.

    Raises:
        ValueError: another scaling, a GPU without float8, quantised weights, or only small linears.
    """
    config = _config(scaling, device)
    layers = decoder.get_submodule("layers")
    if any(is_nf4(parameter) for parameter in layers.parameters()):
        raise ValueError("float8: the decoder's weights are in NF4. Set float8=null or quantize_base=false.")
    linears = {name: m for name, m in layers.named_modules() if _takes_part(name, m, smallest)}
    if not linears:
        raise ValueError(
            f"float8: no linear of the decoder has both widths from {smallest:,} on, divisible by {_STEP}. "
            "Set float8=null."
        )
    trained = {name for name, m in linears.items() if isinstance(m, nn.Linear) and m.weight.requires_grad}
    convert_to_float8_training(layers, module_filter_fn=lambda _, name: name in trained, config=config)
    product = FrozenProduct(config)
    for name in linears.keys() - trained:
        if isinstance(module := linears[name], (LoRALinear, DoRALinear)):
            module.product = product
        else:
            owner, _, leaf = name.rpartition(".")
            setattr(layers.get_submodule(owner), leaf, FrozenFloat8Linear(module, product))
    return len(linears)


def _takes_part(name: str, module: nn.Module, smallest: int) -> bool:
    if is_adapter(name) or not isinstance(module, (nn.Linear, LoRALinear, DoRALinear)):
        return False
    widths = tuple(cast(Tensor, module.weight).shape)
    return all(width >= smallest and width % _STEP == 0 for width in widths)


def _config(scaling: str, device: torch.device) -> Float8LinearConfig:
    if scaling not in SCALINGS:
        raise ValueError(f"float8: expected null or one of {', '.join(SCALINGS)}, got '{scaling}'.")
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        raise ValueError(
            f"float8: {torch.cuda.get_device_name(device)} has no float8; from Ada and Hopper on (L4, L40, "
            "RTX 40, H100) GPUs have. Set float8=null."
        )
    found = Float8LinearConfig.from_recipe_name(scaling)
    # The number of tokens is any: the kernels take multiples of 16, so the inner width is padded.
    return replace(found, emulate=device.type != "cuda", pad_inner_dim=True)


class FrozenFloat8Linear(nn.Linear):
    """A linear whose weight is not trained, multiplied in float8.

    Args:
        linear: whose parameters it takes over.
        product: in float8.
    """

    def __init__(self, linear: nn.Linear, product: FrozenProduct) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight, self.bias, self.product = linear.weight, linear.bias, product

    def forward(self, input: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        return self.product(input, self.weight, self.bias)


@dataclass(frozen=True)
class FrozenProduct:
    """`x W^T + bias` with a weight that needs no gradient.

    Attributes:
        config: how tensors are scaled.
    """

    config: Float8LinearConfig

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """x [..., in], weight [out, in] -> [..., out] in the compute dtype."""
        out: Tensor = _Frozen.apply(x.to(compute_dtype(x)), weight, self.config)
        return out if bias is None else out + bias.to(out.dtype)


@torch.compiler.allow_in_graph
class _Frozen(torch.autograd.Function):
    """x [..., in], weight [out, in] -> [..., out]; keeps the weight only."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, config: Float8LinearConfig) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.config = config
        left = _cast(x, config.cast_config_input, config, GemmInputRole.INPUT, -1)
        right = _cast(weight.t(), config.cast_config_weight, config, GemmInputRole.WEIGHT, 0)
        return torch.mm(left.flatten(0, -2), right).unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx, grad: Tensor):
        (weight,), config = ctx.saved_tensors, ctx.config
        left = _cast(grad, config.cast_config_grad_output, config, GemmInputRole.GRAD_OUTPUT, -1)
        kind = config.cast_config_weight_for_grad_input
        right = _cast(weight.t(), kind, config, GemmInputRole.WEIGHT, -1)
        return torch.mm(left.flatten(0, -2), right.t()).unflatten(0, grad.shape[:-1]), None, None


def _cast(x: Tensor, kind: CastConfig, config: Float8LinearConfig, role: GemmInputRole, dim: int) -> Tensor:
    """A tensor in float8 with its scale, as torchao casts it; `dim` is the inner one of the product."""
    products = Float8Linear(_STEP, _STEP, bias=False, device="meta", config=config).linear_mm_config
    cast: Tensor = hp_tensor_to_float8_dynamic(
        x,
        kind.target_dtype,
        products,
        gemm_input_role=role,
        scaling_granularity=kind.scaling_granularity,
        axiswise_dim=get_maybe_axiswise_dim(dim, kind.scaling_granularity),
        round_scales_to_power_of_2=config.round_scales_to_power_of_2,
    )
    return cast
