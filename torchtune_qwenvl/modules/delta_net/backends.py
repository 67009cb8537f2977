"""The gated delta rule by the fastest implementation that is there.

flash-linear-attention's Triton kernels (`pip install flash-linear-attention`) are taken for bf16 and fp16 on
CUDA if they are installed. Everything else, and fp32 on CUDA, is computed by `rule.py`. Written against the
signature of flash-linear-attention 0.6.0.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from torchtune_qwenvl.modules.attention import Segments
from torchtune_qwenvl.modules.delta_net.plan import ChunkPlan
from torchtune_qwenvl.modules.delta_net.rule import chunked_delta_rule

_KERNELS = "fla.ops.gated_delta_rule"
FLA_INSTALLED = importlib.util.find_spec("fla") is not None


def gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, segments: Segments, plan: ChunkPlan
) -> Tensor:
    """The rule over segments; see `rule.chunked_delta_rule` for arguments and result.

    Args:
        segments: whose tokens these are.
        plan: their chunks.
    """
    if FLA_INSTALLED and v.is_cuda and v.dtype in (torch.bfloat16, torch.float16):
        return fla_delta_rule(q, k, v, g, beta, segments)
    return chunked_delta_rule(q, k, v, g, beta, plan)


def fla_delta_rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, segments: Segments) -> Tensor:
    """The rule by flash-linear-attention's kernels, which keep the state in fp32, too."""
    kernel: Callable[..., tuple[Tensor, Tensor | None]] = importlib.import_module(
        _KERNELS
    ).chunk_gated_delta_rule
    groups = v.shape[1] // q.shape[1]
    q, k = (x.repeat_interleave(groups, dim=1) for x in (q, k))
    out, _ = kernel(
        *(x[None] for x in (q, k, v, g, beta.to(v.dtype))),
        use_qk_l2norm_in_kernel=True,
        cu_seqlens=segments.cu_seqlens.long(),
    )
    return out[0]
