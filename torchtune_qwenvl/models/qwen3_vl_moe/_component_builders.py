"""Decoder of the Qwen3-VL mixtures of experts; the encoder is the dense models'. Source: arXiv:2511.21631."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import nn

from torchtune_qwenvl.models._builders import attention, decoder, swiglu, text_rotary
from torchtune_qwenvl.models.qwen3_vl import qwen3_vl_vision_encoder as qwen3_vl_moe_vision_encoder
from torchtune_qwenvl.modules.decoder import VisionLanguageDecoder
from torchtune_qwenvl.modules.lora import Adapter
from torchtune_qwenvl.modules.moe import GroupedExperts, SparseMoE
from torchtune_qwenvl.modules.rope import interleaved_axes

__all__ = ["qwen3_vl_moe_decoder", "qwen3_vl_moe_vision_encoder"]


def qwen3_vl_moe_decoder(
    *,
    vocab_size: int,
    depth: int,
    width: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    num_experts: int,
    experts_per_token: int,
    expert_width: int,
    tied: bool,
    dense_layers: Collection[int] = (),
    dense_width: int | None = None,
    norm_eps: float = 1e-6,
    mrope_section: Sequence[int] = (24, 20, 20),
    rope_theta: float = 5e6,
    yarn: dict[str, Any] | None = None,
    adapter: Adapter | None = None,
) -> VisionLanguageDecoder:
    """Qwen3 MoE with interleaved M-RoPE: embeddings and positions [n, 3] -> states.

    Args:
        vocab_size: rows of embeddings and head, padding rows included.
        depth: number of layers.
        width: width of the stream.
        num_heads: query heads.
        num_kv_heads: key/value heads.
        head_dim: width of a head.
        num_experts: experts per layer.
        experts_per_token: how many of them a token meets.
        expert_width: hidden width of an expert.
        tied: whether the head reads the embeddings.
        dense_layers: layers that have one MLP instead of experts.
        dense_width: hidden width of those.
        norm_eps: of every RMSNorm.
        mrope_section: frequencies turned by t, by h and by w; they sum to half a head's width.
        rope_theta: base of the frequencies.
        yarn: arguments of `yarn_frequencies`, where the context was stretched.
        adapter: LoRA on the attention and on dense MLPs; experts and routers take none.
    """

    def mlp(layer: int) -> nn.Module:
        if layer in dense_layers:
            assert dense_width is not None
            return swiglu(width, dense_width, bias=False, adapter=adapter)
        router = nn.Linear(width, num_experts, bias=False)
        return SparseMoE(router, GroupedExperts(num_experts, width, expert_width), experts_per_token)

    return decoder(
        vocab_size=vocab_size,
        depth=depth,
        width=width,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        tied=tied,
        norm_eps=norm_eps,
        rotary=text_rotary(head_dim, interleaved_axes(mrope_section), rope_theta, yarn),
        attention=lambda: attention(
            width,
            num_heads,
            num_kv_heads,
            head_dim=head_dim,
            causal=True,
            qkv_bias=False,
            output_bias=False,
            qk_norm_eps=norm_eps,
            adapter=adapter,
        ),
        mlp=mlp,
    )
