"""The vision tower of Qwen2-VL; its decoder is Qwen2.5-VL's. Source: arXiv:2409.12191, section 2.1."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from torchtune_qwenvl.models._builders import VISION_EPS, attention, merger, two_linears, vision_rotary
from torchtune_qwenvl.models.qwen2_5_vl import qwen2_5_vl_decoder as qwen2_vl_decoder
from torchtune_qwenvl.modules.layers import TransformerLayer
from torchtune_qwenvl.modules.lora import Adapter
from torchtune_qwenvl.modules.vision_layers import PatchEmbed, QuickGELU
from torchtune_qwenvl.modules.vision_transformer import VisionTransformer

__all__ = ["qwen2_vl_decoder", "qwen2_vl_vision_encoder"]


def qwen2_vl_vision_encoder(
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
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    adapter: Adapter | None = None,
    merger_adapter: Adapter | None = None,
) -> VisionTransformer:
    """Native-resolution ViT with full attention, LayerNorm and quick GELU: pixels, grids -> visual tokens.

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
        image_mean: per channel, in 0 .. 1; needed for uint8 pixels.
        image_std: the same.
        adapter: LoRA on the layers.
        merger_adapter: LoRA on the merger.
    """
    layers = [
        TransformerLayer(
            attention(width, num_heads, num_heads, causal=False, output_bias=True, adapter=adapter),
            two_linears(width, inner_width, width, activation=QuickGELU(), adapter=adapter),
            sa_norm=nn.LayerNorm(width, VISION_EPS),
            mlp_norm=nn.LayerNorm(width, VISION_EPS),
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
        merger=merger(
            width, out_width, merge_size, norm=nn.LayerNorm(width, VISION_EPS), adapter=merger_adapter
        ),
        rotary=vision_rotary(width // num_heads),
        merge=merge_size,
    )
