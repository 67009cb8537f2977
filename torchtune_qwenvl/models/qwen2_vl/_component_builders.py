"""The vision tower of Qwen2-VL; its decoder is Qwen2.5-VL's. Source: arXiv:2409.12191, section 2.1."""

from __future__ import annotations

from functools import partial
from typing import Any

from torchtune_qwenvl.arguments import takes_arguments_of
from torchtune_qwenvl.models.parts import VISION_EPS, merger, two_linears
from torchtune_qwenvl.models.qwen2_5_vl import qwen2_5_vl_decoder as qwen2_vl_decoder
from torchtune_qwenvl.models.qwen2_vl._weights import QWEN2_VL_WEIGHTS
from torchtune_qwenvl.models.towers import VisionShape, vision_encoder
from torchtune_qwenvl.modules.norm import LayerNorm
from torchtune_qwenvl.modules.vision.layers import QuickGELU
from torchtune_qwenvl.modules.vision.transformer import VisionTransformer

__all__ = ["qwen2_vl_decoder", "qwen2_vl_vision_encoder"]


@takes_arguments_of(VisionShape)
def qwen2_vl_vision_encoder(**sizes: Any) -> VisionTransformer:
    """Native-resolution ViT with full attention, LayerNorm and quick GELU: pixels, grids -> visual tokens.

    Args:
        **sizes: arguments of `VisionShape`.
    """
    shape = VisionShape(**sizes)
    width, inner = shape.width, shape.inner_width
    norm = partial(LayerNorm, eps=VISION_EPS)
    return vision_encoder(
        shape,
        weights=QWEN2_VL_WEIGHTS,
        norm=norm,
        mlp=lambda: two_linears(width, inner, width, activation=QuickGELU(), adapter=shape.adapter),
        merger=merger(
            width, shape.out_width, shape.merge_size, norm=norm(width), adapter=shape.merger_adapter
        ),
    )
