"""Compute in bf16, keep fp32 masters of what trains.

Pure bf16 AdamW at learning rate 1e-6 rounds 98 % of its updates away (bf16 has 8 bits of mantissa), hence
the masters; what is frozen needs none and lies in the compute dtype. Stochastic rounding is the way without
masters.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from torchtune_qwenvl.modules.adapters.nf4 import set_dtype

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def compute_dtype(name: str) -> torch.dtype:
    """The dtype called "bf16" or "fp32"; ValueError for every other name."""
    if name not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got '{name}'.")
    return DTYPES[name]


def set_parameter_dtypes(model: nn.Module, compute: torch.dtype, masters: bool = True) -> None:
    """Set what parameters are kept in; before weights are loaded.

    Trainable ones in fp32 (without `masters` in `compute`), frozen ones in `compute`. Frozen vectors, norm
    scales and biases, stay fp32 too: they weigh nothing, and norms compute in fp32.
    """
    for parameter in model.parameters():
        keep = masters if parameter.requires_grad else parameter.dim() <= 1
        set_dtype(parameter, torch.float32 if keep else compute)


def autocast(device: torch.device, compute: torch.dtype) -> AbstractContextManager:
    """Casts fp32 masters to `compute` where they are used; sharded parameters arrive cast."""
    if compute == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=compute)
