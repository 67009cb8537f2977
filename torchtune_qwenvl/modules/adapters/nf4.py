"""Base weights in NF4 (QLoRA, arXiv:2305.14314): 4 bits per weight, and a scale of 8 bits per 64 weights.

The tensors are torchao's NF4Tensor, used by torchtune's LoRALinear and FrozenNF4Linear. They cannot train.
"""

import torch
from torch import Tensor, nn
from torchao.dtypes.nf4tensor import NF4Tensor, to_nf4

BLOCK = 64 * 256  # weights per scale times scales per scale of scales; the size of a tensor is a multiple


def takes_nf4(numel: int) -> bool:
    """Whether a tensor of `numel` values can be quantised."""
    return numel % BLOCK == 0


def is_nf4(tensor: Tensor) -> bool:
    """Whether a tensor is quantised; for a sharded tensor, pass its local part."""
    return isinstance(tensor, NF4Tensor)


def dequantised(weight: Tensor) -> Tensor:
    """The values of a quantised weight, in its dtype; any other weight is returned as it is."""
    return weight.get_original_weight() if isinstance(weight, NF4Tensor) else weight


def quantised(weight: Tensor) -> Tensor:
    """[out, in] -> the same in NF4."""
    return to_nf4(weight)


@torch.no_grad()
def set_dtype(parameter: nn.Parameter, dtype: torch.dtype) -> None:
    """Cast a parameter in place; for a quantised one, which must be without values yet, its values' dtype."""
    if is_nf4(parameter):
        empty = quantised(torch.empty(parameter.shape, dtype=dtype, device=parameter.device))
        torch.utils.swap_tensors(parameter, nn.Parameter(empty, requires_grad=False))
    else:
        parameter.data = parameter.data.to(dtype)
