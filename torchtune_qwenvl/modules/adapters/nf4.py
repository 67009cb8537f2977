"""Base weights in NF4 (QLoRA, arXiv:2305.14314): 4 bits per weight, a scale of 8 bits for 64 of them.

torchao's NF4Tensor does the work, torchtune's LoRALinear and FrozenNF4Linear compute with it; none trains.
"""

import torch
from torch import Tensor, nn
from torchao.dtypes.nf4tensor import NF4Tensor, to_nf4

BLOCK = 64 * 256  # weights per scale, scales per scale of scales: a tensor holds whole blocks


def takes_nf4(numel: int) -> bool:
    """Whether NF4 takes a tensor of so many values."""
    return numel % BLOCK == 0


def is_nf4(tensor: Tensor) -> bool:
    """Whether a tensor is quantised; of a sharded one ask for the local part."""
    return isinstance(tensor, NF4Tensor)


def dequantised(weight: Tensor) -> Tensor:
    """The values that a weight stands for, in its dtype; a weight that is not quantised as it is."""
    return weight.get_original_weight() if isinstance(weight, NF4Tensor) else weight


def quantised(weight: Tensor) -> Tensor:
    """[out, in] -> the same in NF4."""
    return to_nf4(weight)


@torch.no_grad()
def set_dtype(parameter: nn.Parameter, dtype: torch.dtype) -> None:
    """Keep a parameter in `dtype`, in place; of a quantised one, which has no values yet, what NF4 holds."""
    if is_nf4(parameter):
        empty = quantised(torch.empty(parameter.shape, dtype=dtype, device=parameter.device))
        torch.utils.swap_tensors(parameter, nn.Parameter(empty, requires_grad=False))
    else:
        parameter.data = parameter.data.to(dtype)
