"""The two towers of Qwen2.5-VL: torchtune's parts in our slots. Source: arXiv:2502.13923, section 2.1."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torchtune_qwenvl.models._builders import (
    VISION_EPS,
    attention,
    decoder,
    merger,
    swiglu,
    text_rotary,
    vision_rotary,
)
from torchtune_qwenvl.modules.decoder import VisionLanguageDecoder
from torchtune_qwenvl.modules.layers import TransformerLayer
from torchtune_qwenvl.modules.lora import Adapter
from torchtune_qwenvl.modules.norm import RMSNorm
from torchtune_qwenvl.modules.rope import chunked_axes
from torchtune_qwenvl.modules.vision_layers import PatchEmbed
from torchtune_qwenvl.modules.vision_transformer import VisionTransformer


def qwen2_5_vl_vision_encoder(
    *,
    depth: int,
    width: int,
    num_heads: int,
    inner_width: int,
    out_width: int,
    patch_size: int = 14,
    temporal_patch_size: int = 2,
    in_channels: int = 3,
    merge_size: int = 2,
    window_size: int = 112,
    full_attention: Collection[int] = (7, 15, 23, 31),
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    adapter: Adapter | None = None,
    merger_adapter: Adapter | None = None,
) -> VisionTransformer:
    """Native-resolution ViT with windowed attention and a 2 x 2 merger: pixels, grids -> visual tokens.

    Args:
        depth: number of layers.
        width: width of the encoder.
        num_heads: attention heads; a head's width is a multiple of 4.
        inner_width: hidden width of the MLPs.
        out_width: width of a visual token, that of the decoder.
        patch_size: side of a patch in pixels.
        temporal_patch_size: frames per patch.
        in_channels: colour channels.
        merge_size: patches per side of a visual token.
        window_size: side of an attention window in pixels.
        full_attention: layers that see the whole frame.
        image_mean: per channel, in 0 .. 1; needed for uint8 pixels.
        image_std: the same.
        adapter: LoRA on the layers.
        merger_adapter: LoRA on the merger.
    """
    layers = [
        TransformerLayer(
            attention(width, num_heads, num_heads, causal=False, output_bias=True, adapter=adapter),
            swiglu(width, inner_width, bias=True, adapter=adapter),
            sa_norm=RMSNorm(width, VISION_EPS),
            mlp_norm=RMSNorm(width, VISION_EPS),
        )
        for _ in range(depth)
    ]
    return VisionTransformer(
        patch_embed=PatchEmbed(
            channels=in_channels,
            frames=temporal_patch_size,
            patch=patch_size,
            width=width,
            mean=image_mean,
            std=image_std,
        ),
        layers=layers,
        merger=merger(width, out_width, merge_size, norm=RMSNorm(width, VISION_EPS), adapter=merger_adapter),
        rotary=vision_rotary(width // num_heads),
        merge=merge_size,
        window=window_size // patch_size // merge_size,
        full_attention=full_attention,
    )


def qwen2_5_vl_decoder(
    *,
    vocab_size: int,
    depth: int,
    width: int,
    num_heads: int,
    num_kv_heads: int,
    inner_width: int,
    tied: bool,
    norm_eps: float = 1e-6,
    mrope_section: Sequence[int] = (16, 24, 24),
    rope_theta: float = 1e6,
    yarn: dict[str, Any] | None = None,
    adapter: Adapter | None = None,
) -> VisionLanguageDecoder:
    """Qwen2.5 with M-RoPE: embeddings and positions [n, 3] -> states.

    Args:
        vocab_size: rows of embeddings and head, padding rows included.
        depth: number of layers.
        width: width of the stream.
        num_heads: query heads.
        num_kv_heads: key/value heads.
        inner_width: hidden width of the MLPs.
        tied: whether the head reads the embeddings.
        norm_eps: of every RMSNorm.
        mrope_section: frequencies turned by t, by h and by w; they sum to half a head's width.
        rope_theta: base of the frequencies.
        yarn: arguments of `yarn_frequencies`, where the context was stretched.
        adapter: LoRA on the layers.
    """
    head_dim = width // num_heads
    return decoder(
        vocab_size=vocab_size,
        depth=depth,
        width=width,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        tied=tied,
        norm_eps=norm_eps,
        rotary=text_rotary(head_dim, chunked_axes(mrope_section), rope_theta, yarn),
        attention=lambda: attention(
            width, num_heads, num_kv_heads, causal=True, output_bias=False, adapter=adapter
        ),
        mlp=lambda _: swiglu(width, inner_width, bias=False, adapter=adapter),
    )
