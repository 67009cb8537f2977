"""The two towers of Qwen2.5-VL. Source: arXiv:2502.13923, section 2.1."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

from torchtune_qwenvl.arguments import takes_arguments_of
from torchtune_qwenvl.models.parts import VISION_EPS, merger, swiglu, text_rotary
from torchtune_qwenvl.models.qwen2_5_vl._weights import QWEN2_5_VL_WEIGHTS
from torchtune_qwenvl.models.towers import TextShape, VisionShape, decoder, vision_encoder
from torchtune_qwenvl.modules.decoder import VisionLanguageDecoder
from torchtune_qwenvl.modules.norm import RMSNorm
from torchtune_qwenvl.modules.rope import chunked_axes
from torchtune_qwenvl.modules.vision.transformer import VisionTransformer


@takes_arguments_of(VisionShape)
def qwen2_5_vl_vision_encoder(
    *, window_size: int = 112, full_attention: Collection[int] = (7, 15, 23, 31), **sizes: Any
) -> VisionTransformer:
    """Native-resolution ViT with windowed attention and a 2 x 2 merger: pixels, grids -> visual tokens.

    Args:
        window_size: side of an attention window in pixels.
        full_attention: layers without windows, which attend to the whole frame.
        **sizes: arguments of `VisionShape`.
    """
    shape = VisionShape(**sizes)
    norm = partial(RMSNorm, eps=VISION_EPS)
    return vision_encoder(
        shape,
        weights=QWEN2_5_VL_WEIGHTS,
        norm=norm,
        mlp=lambda: swiglu(shape.width, shape.inner_width, bias=True, adapter=shape.adapter),
        merger=merger(
            shape.width,
            shape.out_width,
            shape.merge_size,
            norm=norm(shape.width),
            adapter=shape.merger_adapter,
        ),
        window_size=window_size,
        full_attention=full_attention,
    )


@takes_arguments_of(TextShape)
def qwen2_5_vl_decoder(**sizes: Any) -> VisionLanguageDecoder:
    """Qwen2.5 with M-RoPE: embeddings and positions [n, 3] -> states.

    Args:
        **sizes: arguments of `TextShape`.
    """
    shape = TextShape(**sizes)
    axes = chunked_axes(shape.mrope_section)
    return decoder(
        shape,
        rotary=text_rotary(shape.width // shape.num_heads, axes, shape.rope_theta, shape.rope_scaling),
        mlp=lambda _: swiglu(shape.width, shape.inner_width, bias=False, adapter=shape.adapter),
    )
