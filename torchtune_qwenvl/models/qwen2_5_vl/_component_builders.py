"""The two towers of Qwen2.5-VL: torchtune's parts in our slots. Source: arXiv:2502.13923, section 2.1."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import nn
from torchtune.modules import FeedForward, RMSNorm

from torchtune_qwenvl.modules.decoder import TiedOutput, VisionLanguageDecoder
from torchtune_qwenvl.modules.layers import Attention, TransformerLayer
from torchtune_qwenvl.modules.lora import Adapter, make_linear
from torchtune_qwenvl.modules.rope import AxialRotary, inverse_frequencies, yarn_frequencies
from torchtune_qwenvl.modules.vision_layers import PatchEmbed, PatchMerger
from torchtune_qwenvl.modules.vision_transformer import VisionTransformer

_VISION_EPS = 1e-6  # fixed in the reference, no entry of config.json
_VISION_THETA = 1e4


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
    head_dim = width // num_heads
    axis = inverse_frequencies(head_dim // 2, _VISION_THETA)
    layers = [
        TransformerLayer(
            _attention(width, num_heads, num_heads, causal=False, output_bias=True, adapter=adapter),
            _swiglu(width, inner_width, bias=True, adapter=adapter),
            sa_norm=RMSNorm(width, _VISION_EPS),
            mlp_norm=RMSNorm(width, _VISION_EPS),
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
        merger=_merger(width, out_width, merge_size, merger_adapter),
        rotary=AxialRotary(axis.repeat(2), [0] * len(axis) + [1] * len(axis)),
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
    scale = 1.0
    if yarn is None:
        frequencies = inverse_frequencies(head_dim, rope_theta)
    else:
        frequencies, scale = yarn_frequencies(head_dim, rope_theta, **yarn)
    axes = [axis for axis, section in enumerate(mrope_section) for _ in range(section)]
    layers = [
        TransformerLayer(
            _attention(width, num_heads, num_kv_heads, causal=True, output_bias=False, adapter=adapter),
            _swiglu(width, inner_width, bias=False, adapter=adapter),
            sa_norm=RMSNorm(width, norm_eps),
            mlp_norm=RMSNorm(width, norm_eps),
        )
        for _ in range(depth)
    ]
    tok_embeddings = nn.Embedding(vocab_size, width)
    return VisionLanguageDecoder(
        tok_embeddings=tok_embeddings,
        layers=layers,
        norm=RMSNorm(width, norm_eps),
        output=TiedOutput(tok_embeddings) if tied else nn.Linear(width, vocab_size, bias=False),
        rotary=AxialRotary(frequencies, axes, scale),
        kv_heads=num_kv_heads,
        head_dim=head_dim,
    )


def _attention(
    width: int, heads: int, kv_heads: int, *, causal: bool, output_bias: bool, adapter: Adapter | None
) -> Attention:
    head_dim = width // heads
    shapes = {
        "q_proj": (width, heads * head_dim, True),
        "k_proj": (width, kv_heads * head_dim, True),
        "v_proj": (width, kv_heads * head_dim, True),
        "output_proj": (heads * head_dim, width, output_bias),
    }
    linears = {
        name: make_linear(name, i, o, bias=bias, adapter=adapter) for name, (i, o, bias) in shapes.items()
    }
    return Attention(**linears, head_dim=head_dim, causal=causal)


def _swiglu(width: int, inner: int, *, bias: bool, adapter: Adapter | None) -> FeedForward:
    return FeedForward(
        gate_proj=make_linear("w1", width, inner, bias=bias, adapter=adapter),
        down_proj=make_linear("w2", inner, width, bias=bias, adapter=adapter),
        up_proj=make_linear("w3", width, inner, bias=bias, adapter=adapter),
    )


def _merger(width: int, out_width: int, merge: int, adapter: Adapter | None) -> PatchMerger:
    inner = width * merge * merge
    mlp = FeedForward(
        gate_proj=make_linear("w1", inner, inner, bias=True, adapter=adapter),
        down_proj=make_linear("w2", inner, out_width, bias=True, adapter=adapter),
        activation=nn.GELU(),
    )
    return PatchMerger(norm=RMSNorm(width, _VISION_EPS), mlp=mlp, merge=merge)
