"""Decoder of the Qwen3-VL mixtures of experts; the encoder is the dense models'. Source: arXiv:2511.21631."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from torchtune_qwenvl.models.parts import swiglu
from torchtune_qwenvl.models.qwen3_vl import qwen3_vl_vision_encoder as qwen3_vl_moe_vision_encoder
from torchtune_qwenvl.models.qwen3_vl._component_builders import qwen3_decoder, text_arguments
from torchtune_qwenvl.models.towers import TextShape
from torchtune_qwenvl.modules.adapters.lora import Adapter
from torchtune_qwenvl.modules.decoder import VisionLanguageDecoder
from torchtune_qwenvl.modules.experts.moe import GroupedExperts, SparseMoE
from torchtune_qwenvl.modules.experts.routers import Router

__all__ = ["qwen3_vl_moe_decoder", "qwen3_vl_moe_vision_encoder"]


@text_arguments
def qwen3_vl_moe_decoder(
    *,
    head_dim: int,
    num_experts: int,
    experts_per_token: int,
    expert_width: int,
    dense_layers: Collection[int] = (),
    experts_adapter: Adapter | None = None,
    **sizes: Any,
) -> VisionLanguageDecoder:
    """Qwen3 MoE with interleaved M-RoPE: embeddings and positions [n, 3] -> states.

    Args:
        head_dim: width of a head.
        num_experts: experts per layer.
        experts_per_token: how many of them process a token.
        expert_width: hidden width of an expert.
        dense_layers: layers that have one MLP of `inner_width` instead of experts.
        experts_adapter: LoRA on the experts.
        **sizes: arguments of `TextShape`.
    """
    shape = TextShape(**sizes)

    def mlp(layer: int) -> nn.Module:
        if layer in dense_layers:
            return swiglu(shape.width, shape.inner_width, bias=False, adapter=shape.adapter)
        return SparseMoE(
            Router(shape.width, num_experts, experts_per_token),
            GroupedExperts(num_experts, shape.width, expert_width, experts_adapter),
        )

    return qwen3_decoder(shape, head_dim, mlp)
