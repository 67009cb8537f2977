"""Decoder of GLM-4.5V: GLM-4.5-Air with M-RoPE; the encoder is GLM-4.1V's. Source: arXiv:2508.06471.

Unlike the dense models it turns a head's halves, not neighbours, and has two norms per layer.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from torchtune_qwenvl.arguments import takes_arguments_of
from torchtune_qwenvl.models.glm4v import glm4v_vision_encoder as glm4v_moe_vision_encoder
from torchtune_qwenvl.models.parts import swiglu, text_rotary
from torchtune_qwenvl.models.towers import TextShape, decoder
from torchtune_qwenvl.modules.adapters.lora import Adapter
from torchtune_qwenvl.modules.decoder import VisionLanguageDecoder
from torchtune_qwenvl.modules.experts.moe import GroupedExperts, SparseMoE
from torchtune_qwenvl.modules.experts.routers import SigmoidRouter
from torchtune_qwenvl.modules.rope import chunked_axes

__all__ = ["glm4v_moe_decoder", "glm4v_moe_vision_encoder"]


@takes_arguments_of(TextShape, norm_eps=1e-5, mrope_section=(8, 12, 12), rope_theta=1e4)
def glm4v_moe_decoder(
    *,
    head_dim: int,
    num_experts: int,
    experts_per_token: int,
    expert_width: int,
    shared_experts: int = 1,
    dense_layers: int = 1,
    expert_groups: int = 1,
    open_groups: int = 1,
    routed_scale: float = 1.0,
    qkv_bias: bool = True,
    rotary_dim: int | None = None,
    experts_adapter: Adapter | None = None,
    **sizes: Any,
) -> VisionLanguageDecoder:
    """GLM-4 MoE with M-RoPE: embeddings and positions [n, 3] -> states.

    Args:
        head_dim: width of a head.
        num_experts: experts per layer.
        experts_per_token: how many of them process a token.
        expert_width: hidden width of an expert.
        shared_experts: width, in experts, of an MLP that processes every token.
        dense_layers: how many of the first layers have one MLP of `inner_width` instead of experts.
        expert_groups: groups of experts.
        open_groups: how many of them a token may choose from.
        routed_scale: factor of what the chosen experts add.
        qkv_bias: whether q, k and v have a bias.
        rotary_dim: how many values of a head are rotated; default half of them.
        experts_adapter: LoRA on the experts.
        **sizes: arguments of `TextShape`.
    """
    shape = TextShape(**sizes)

    def mlp(layer: int) -> nn.Module:
        if layer < dense_layers:
            return swiglu(shape.width, shape.inner_width, bias=False, adapter=shape.adapter)
        router = SigmoidRouter(
            shape.width,
            num_experts,
            experts_per_token,
            groups=expert_groups,
            open_groups=open_groups,
            scale=routed_scale,
        )
        experts = GroupedExperts(num_experts, shape.width, expert_width, experts_adapter)
        shared = swiglu(shape.width, shared_experts * expert_width, bias=False, adapter=shape.adapter)
        return SparseMoE(router, experts, shared)

    axes = chunked_axes(shape.mrope_section)
    return decoder(
        shape,
        head_dim=head_dim,
        qkv_bias=qkv_bias,
        rotary=text_rotary(rotary_dim or head_dim // 2, axes, shape.rope_theta, shape.rope_scaling),
        mlp=mlp,
    )
