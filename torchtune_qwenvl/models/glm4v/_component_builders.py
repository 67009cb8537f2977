"""The two towers of GLM-4.1V: torchtune's parts in our slots. Source: arXiv:2507.01006, section 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torchtune.modules import RMSNorm

from torchtune_qwenvl.models._builders import attention, decoder, swiglu, text_rotary, vision_rotary
from torchtune_qwenvl.modules.decoder import VisionLanguageDecoder
from torchtune_qwenvl.modules.layers import TransformerLayer
from torchtune_qwenvl.modules.learned_positions import LearnedPositions, bicubic
from torchtune_qwenvl.modules.lora import Adapter
from torchtune_qwenvl.modules.rope import chunked_axes
from torchtune_qwenvl.modules.vision_layers import GatedPatchMerger, PatchEmbed
from torchtune_qwenvl.modules.vision_transformer import VisionTransformer


def glm4v_vision_encoder(
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
    table_side: int = 24,
    norm_eps: float = 1e-5,
    qkv_bias: bool = False,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    adapter: Adapter | None = None,
    merger_adapter: Adapter | None = None,
) -> VisionTransformer:
    """AIMv2-like ViT with stretched learned positions and rotary ones: pixels, grids -> visual tokens.

    Args:
        depth: number of layers.
        width: width of the encoder.
        num_heads: attention heads; a head's width is a multiple of 4.
        inner_width: hidden width of the merger's MLP. That of the layers' MLPs is `out_width`.
        out_width: width of a visual token, that of the decoder.
        patch_size: side of a patch in pixels.
        temporal_patch_size: frames per patch.
        in_channels: colour channels.
        merge_size: patches per side of a visual token.
        table_side: rows and columns of the table of learned positions.
        norm_eps: of every RMSNorm.
        qkv_bias: whether q, k and v have one.
        image_mean: per channel, in 0 .. 1; needed for uint8 pixels.
        image_std: the same.
        adapter: LoRA on the layers.
        merger_adapter: LoRA on the merger's MLP.
    """
    layers = [
        TransformerLayer(
            attention(
                width,
                num_heads,
                num_heads,
                causal=False,
                qkv_bias=qkv_bias,
                output_bias=False,
                adapter=adapter,
            ),
            swiglu(width, out_width, bias=False, adapter=adapter),
            sa_norm=RMSNorm(width, norm_eps),
            mlp_norm=RMSNorm(width, norm_eps),
        )
        for _ in range(depth)
    ]
    merger = GatedPatchMerger(
        norm=RMSNorm(width, norm_eps),
        downsample=nn.Linear(width * merge_size**2, out_width),
        proj=nn.Linear(out_width, out_width, bias=False),
        proj_norm=nn.LayerNorm(out_width),
        mlp=swiglu(out_width, inner_width, bias=False, adapter=merger_adapter),
        merge=merge_size,
    )
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
        patch_norm=RMSNorm(width, norm_eps),
        position_embed=LearnedPositions(side=table_side, width=width, stretch=bicubic),
        layers=layers,
        merger=merger,
        rotary=vision_rotary(width // num_heads),
        merge=merge_size,
    )


def glm4v_decoder(
    *,
    vocab_size: int,
    depth: int,
    width: int,
    num_heads: int,
    num_kv_heads: int,
    inner_width: int,
    tied: bool,
    norm_eps: float = 1e-5,
    rotary_dim: int | None = None,
    mrope_section: Sequence[int] = (8, 12, 12),
    rope_theta: float = 1e4,
    yarn: dict[str, Any] | None = None,
    adapter: Adapter | None = None,
) -> VisionLanguageDecoder:
    """GLM-4 with M-RoPE and four norms per layer: embeddings and positions [n, 3] -> states.

    Args:
        vocab_size: rows of embeddings and head, padding rows included.
        depth: number of layers.
        width: width of the stream.
        num_heads: query heads.
        num_kv_heads: key/value heads.
        inner_width: hidden width of the MLPs.
        tied: whether the head reads the embeddings.
        norm_eps: of every RMSNorm.
        rotary_dim: how many values of a head are rotated; default half of them.
        mrope_section: frequencies turned by t, by h and by w; they sum to half of `rotary_dim`.
        rope_theta: base of the frequencies.
        yarn: arguments of `yarn_frequencies`, where the context was stretched.
        adapter: LoRA on the layers.
    """
    head_dim = width // num_heads
    rotary_dim = rotary_dim or head_dim // 2
    return decoder(
        vocab_size=vocab_size,
        depth=depth,
        width=width,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        tied=tied,
        norm_eps=norm_eps,
        rotary=text_rotary(rotary_dim, chunked_axes(mrope_section), rope_theta, yarn, neighbours=True),
        attention=lambda: attention(
            width, num_heads, num_kv_heads, causal=True, output_bias=False, adapter=adapter
        ),
        mlp=lambda _: swiglu(width, inner_width, bias=False, adapter=adapter),
        norm_branches=True,
    )
