"""LoRA on a model that is already built, and its sum with the weights when it has been trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torchtune.modules.peft import LoRALinear

from torchtune_qwenvl.modules.adapters.lora import Adapter, make_linear


def attach_lora(model: nn.Module, adapter: Adapter) -> int:
    """Put LoRA on every linear whose name is one of the adapter's targets; returns their number.

    The weights stay as they are, and A is drawn at random.

    Raises:
        ValueError: no linear of these names.
    """
    found = [
        (name, module)
        for name, module in model.named_modules()
        if type(module) is nn.Linear and name.rpartition(".")[2] in adapter.targets
    ]
    if not found:
        raise ValueError(f"LoRA: the model has no linear called {', '.join(sorted(adapter.targets))}")
    for name, linear in found:
        leaf = name.rpartition(".")[2]
        size = (linear.in_features, linear.out_features)
        carrier: Any = make_linear(leaf, *size, bias=linear.bias is not None, adapter=adapter)
        carrier.weight, carrier.bias = linear.weight, linear.bias
        carrier.to(linear.weight.device)
        for matrix in (carrier.lora_a, carrier.lora_b):
            matrix.to(linear.weight.dtype)
        _replace(model, name, carrier)
    return len(found)


@torch.no_grad()
def merge_lora(model: nn.Module) -> None:
    """Replace each LoRALinear by a linear with the weight `W + alpha / rank * B A`, in W's dtype."""
    for name, module in list(model.named_modules()):
        if not isinstance(module, LoRALinear):
            continue
        linear = nn.Linear(module.in_dim, module.out_dim, bias=module.bias is not None, device="meta")
        scale = module.alpha / module.rank
        product = module.lora_b.weight.float() @ module.lora_a.weight.float()
        merged = module.weight.float() + scale * product
        linear.weight = nn.Parameter(merged.to(module.weight.dtype))
        linear.bias = module.bias
        _replace(model, name, linear)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, module)
