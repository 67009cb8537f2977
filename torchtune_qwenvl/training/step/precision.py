"""Compute in bf16, but keep trained parameters in fp32 ("masters").

Pure bf16 AdamW with learning rate 1e-6 loses 98 % of its updates to rounding, since bf16 has 8 bits of
mantissa. Frozen parameters need no masters and are kept in the compute dtype. An optimizer with stochastic
rounding needs none either.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from torchtune_qwenvl.modules.adapters.nf4 import set_dtype

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def compute_dtype(name: str) -> torch.dtype:
    """The dtype called "bf16" or "fp32"; any other name is a ValueError."""
    if name not in DTYPES:
        raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got '{name}'.")
    return DTYPES[name]


def set_parameter_dtypes(model: nn.Module, compute: torch.dtype, masters: bool = True) -> None:
    """Set the dtypes of parameters; call before weights are loaded.

    Trained parameters are kept in fp32 (in `compute` without `masters`), frozen ones in `compute`. Frozen
    vectors, norm scales and biases, stay in fp32: they need little memory, and norms compute in fp32.
    """
    for parameter in model.parameters():
        keep = masters if parameter.requires_grad else parameter.dim() <= 1
        set_dtype(parameter, torch.float32 if keep else compute)


def autocast(device: torch.device, compute: torch.dtype) -> AbstractContextManager:
    """A context that casts masters to `compute` where they are used; FSDP casts sharded ones itself."""
    if compute == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype=compute)
