"""The floating-point operations and the memory traffic of one kernel, from its arguments.

n tokens in segments, h heads, d head width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

# These make a view or memory without contents: no kernel runs.
FREE = frozenset(
    [
        "view",
        "_unsafe_view",
        "t",
        "transpose",
        "permute",
        "slice",
        "select",
        "expand",
        "unsqueeze",
        "squeeze",
        "split",
        "split_with_sizes",
        "detach",
        "alias",
        "as_strided",
        "unbind",
        "lift_fresh",
        "unflatten",
        "_reshape_alias",
        "chunk",
        "device",
        "layout",
        "dtype",
        "prim_layout",
        "empty",
        "new_empty",
        "empty_like",
        "empty_strided",
        "new_empty_strided",
    ]
)
# These read as much as they write, not all of their input.
GATHERS = frozenset(("index_select", "embedding"))
ATTENTION = frozenset(("_varlen_attn", "_varlen_attn_backward"))


def tensors_in(tree: Any) -> list[Tensor]:
    """All tensors in nested arguments or results."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def nbytes(tensor: Tensor) -> int:
    """Bytes of memory behind a tensor; an expanded axis counts once."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else 1
    return count * tensor.element_size()


def traffic(name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> int:
    """Bytes that a kernel reads and writes."""
    written = sum(map(nbytes, outputs))
    return 2 * written if name in GATHERS else sum(map(nbytes, inputs)) + written


def operations(func: Any, name: str, arguments: Sequence[Any], result: Any, segments: Sequence[int]) -> float:
    """Floating-point operations of a matrix product or of attention; 0 for everything else.

    Args:
        func: the operator.
        name: its name without namespace.
        arguments: its positional arguments.
        result: what it returned.
        segments: lengths of attention's segments, which a fake tensor does not tell.
    """
    if name in ATTENTION:
        backward = name.endswith("backward")
        q = arguments[1] if backward else arguments[0]
        causal = arguments[10 if backward else 7]
        pairs = sum(length * length for length in segments) / (2 if causal else 1)
        return 4 * q.shape[1] * q.shape[2] * pairs * (2.5 if backward else 1)
    if name == "_grouped_mm":
        a, b = arguments[:2]
        per_row = b.shape[-1] if a.dim() == 2 and b.dim() == 2 else a.shape[-1] * b.shape[-1]
        return 2 * a.numel() * per_row if a.dim() == 2 and b.dim() == 2 else 2 * a.shape[-2] * per_row
    if func.overloadpacket in flop_registry:
        return float(flop_registry[func.overloadpacket](*arguments, out_val=result))
    return 0.0


def is_half(tensors: Sequence[Tensor]) -> bool:
    """Whether tensor cores multiply these."""
    return bool(tensors) and tensors[0].dtype in (torch.bfloat16, torch.float16, torch.float8_e4m3fn)
