"""Decoder of the Qwen3.5 mixtures of experts; the encoder is the dense models'.

Every layer has experts, and one more that processes every token, weighed by a sigmoid. Source: transformers'
`qwen3_5_moe`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from torchtune_qwenvl.models.parts import swiglu
from torchtune_qwenvl.models.qwen3_5 import qwen3_5_vision_encoder as qwen3_5_moe_vision_encoder
from torchtune_qwenvl.models.qwen3_5._component_builders import (
    hybrid_decoder,
    prediction_layers,
    text_arguments,
)
from torchtune_qwenvl.models.towers import TextShape
from torchtune_qwenvl.modules.adapters.lora import Adapter
from torchtune_qwenvl.modules.decoder import VisionLanguageDecoder
from torchtune_qwenvl.modules.experts.moe import GroupedExperts, SparseMoE
from torchtune_qwenvl.modules.experts.routers import Router
from torchtune_qwenvl.modules.prediction import MultiTokenPrediction

__all__ = ["qwen3_5_moe_decoder", "qwen3_5_moe_vision_encoder"]


@text_arguments
def qwen3_5_moe_decoder(
    *,
    head_dim: int,
    rotary_dim: int,
    layer_types: Sequence[str],
    key_heads: int,
    value_heads: int,
    key_width: int,
    value_width: int,
    taps: int,
    num_experts: int,
    experts_per_token: int,
    expert_width: int,
    shared_width: int,
    experts_adapter: Adapter | None = None,
    **sizes: Any,
) -> VisionLanguageDecoder:
    """Qwen3.5's decoder with mixtures of experts: embeddings and positions [n, 3] -> states.

    Args:
        head_dim: width of a head of attention.
        rotary_dim: how many values of it are rotated.
        layer_types: "linear_attention" or "full_attention" for each layer.
        key_heads: heads of queries and keys in a delta net.
        value_heads: heads of values there.
        key_width: width of a query or key there.
        value_width: width of a value there.
        taps: width of the convolution there.
        num_experts: experts per layer.
        experts_per_token: how many of them process a token.
        expert_width: hidden width of an expert.
        shared_width: hidden width of the expert that processes every token.
        experts_adapter: LoRA on the experts.
        **sizes: arguments of `TextShape`.
    """
    shape = TextShape(**sizes)

    def mlp(_: int) -> nn.Module:
        sizes = (num_experts, experts_per_token, expert_width, shared_width)
        return _mixture(shape, *sizes, experts_adapter)

    linear = {
        **{"key_heads": key_heads, "value_heads": value_heads},
        **{"key_width": key_width, "value_width": value_width, "taps": taps},
    }
    return hybrid_decoder(
        shape,
        head_dim=head_dim,
        rotary_dim=rotary_dim,
        layer_types=layer_types,
        linear=linear,
        mlp=mlp,
    )


def _mixture(
    shape: TextShape, experts: int, chosen: int, width: int, shared_width: int, adapter: Adapter | None
) -> SparseMoE:
    return SparseMoE(
        Router(shape.width, experts, chosen),
        GroupedExperts(experts, shape.width, width, adapter),
        swiglu(shape.width, shared_width, bias=False, adapter=shape.adapter),
        shared_gate=nn.Linear(shape.width, 1, bias=False),
    )


def moe_prediction_layers(config: Mapping[str, Any]) -> MultiTokenPrediction:
    """As `prediction_layers`, with a mixture of experts."""
    text = config["text_config"]
    sizes = (text["num_experts"], text["num_experts_per_tok"])
    widths = (text["moe_intermediate_size"], text["shared_expert_intermediate_size"])
    return prediction_layers(config, lambda shape: _mixture(shape, *sizes, *widths, None))
