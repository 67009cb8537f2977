"""The two towers of Qwen3-VL: torchtune's parts in our slots.

Unusual beside Qwen2.5-VL: learned positions under the rotary ones, features of three encoder layers that are
added to the first decoder layers (DeepStack, arXiv:2406.04334), normalised queries and keys, rotary axes that
take turns. Source: arXiv:2511.21631, section 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from torchtune_qwenvl.models._builders import (
    VISION_EPS,
    attention,
    decoder,
    merger,
    swiglu,
    text_rotary,
    two_linears,
    vision_rotary,
)
from torchtune_qwenvl.modules.decoder import VisionLanguageDecoder
from torchtune_qwenvl.modules.layers import TransformerLayer
from torchtune_qwenvl.modules.learned_positions import LearnedPositions, bilinear
from torchtune_qwenvl.modules.lora import Adapter
from torchtune_qwenvl.modules.rope import interleaved_axes
from torchtune_qwenvl.modules.vision_layers import PatchEmbed
from torchtune_qwenvl.modules.vision_transformer import VisionTransformer


def qwen3_vl_vision_encoder(
    *,
    depth: int,
    width: int,
    num_heads: int,
    inner_width: int,
    out_width: int,
    deepstack_layers: Sequence[int],
    position_side: int = 48,
    patch_size: int = 16,
    temporal_patch_size: int = 2,
    in_channels: int = 3,
    merge_size: int = 2,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    adapter: Adapter | None = None,
    merger_adapter: Adapter | None = None,
) -> VisionTransformer:
    """ViT with learned positions and DeepStack mergers: pixels, grids -> visual tokens.

    Args:
        depth: number of layers.
        width: width of the encoder.
        num_heads: attention heads; a head's width is a multiple of 4.
        inner_width: hidden width of the MLPs.
        out_width: width of a visual token, that of the decoder.
        deepstack_layers: layers behind which a merger makes features for the decoder.
        position_side: rows and columns of the table of learned positions.
        patch_size: side of a patch in pixels.
        temporal_patch_size: frames per patch.
        in_channels: colour channels.
        merge_size: patches per side of a visual token.
        image_mean: per channel, in 0 .. 1; needed for uint8 pixels.
        image_std: the same.
        adapter: LoRA on the layers.
        merger_adapter: LoRA on the mergers.
    """
    layers = [
        TransformerLayer(
            attention(width, num_heads, num_heads, causal=False, output_bias=True, adapter=adapter),
            two_linears(width, inner_width, width, activation=nn.GELU("tanh"), adapter=adapter),
            sa_norm=nn.LayerNorm(width, VISION_EPS),
            mlp_norm=nn.LayerNorm(width, VISION_EPS),
        )
        for _ in range(depth)
    ]

    def make_merger(norm_width: int, norm_after: bool) -> nn.Module:
        norm = nn.LayerNorm(norm_width, VISION_EPS)
        return merger(width, out_width, merge_size, norm=norm, norm_after=norm_after, adapter=merger_adapter)

    return VisionTransformer(
        patch_embed=PatchEmbed(
            channels=in_channels,
            frames=temporal_patch_size,
            patch=patch_size,
            width=width,
            bias=True,
            mean=image_mean,
            std=image_std,
        ),
        position_embed=LearnedPositions(side=position_side, width=width, stretch=bilinear),
        layers=layers,
        merger=make_merger(width, norm_after=False),
        deepstack_mergers={
            layer: make_merger(width * merge_size**2, norm_after=True) for layer in deepstack_layers
        },
        rotary=vision_rotary(width // num_heads),
        merge=merge_size,
    )


def qwen3_vl_decoder(
    *,
    vocab_size: int,
    depth: int,
    width: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    inner_width: int,
    tied: bool,
    norm_eps: float = 1e-6,
    mrope_section: Sequence[int] = (24, 20, 20),
    rope_theta: float = 5e6,
    yarn: dict[str, Any] | None = None,
    adapter: Adapter | None = None,
) -> VisionLanguageDecoder:
    """Qwen3 with interleaved M-RoPE: embeddings and positions [n, 3] -> states.

    Args:
        vocab_size: rows of embeddings and head, padding rows included.
        depth: number of layers.
        width: width of the stream.
        num_heads: query heads.
        num_kv_heads: key/value heads.
        head_dim: width of a head.
        inner_width: hidden width of the MLPs.
        tied: whether the head reads the embeddings.
        norm_eps: of every RMSNorm.
        mrope_section: frequencies turned by t, by h and by w; they sum to half a head's width.
        rope_theta: base of the frequencies.
        yarn: arguments of `yarn_frequencies`, where the context was stretched.
        adapter: LoRA on the layers.
    """
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
        mlp=lambda _: swiglu(width, inner_width, bias=False, adapter=adapter),
    )
