"""The two towers of Qwen3-VL.

What Qwen2.5-VL does not have: learned positions in addition to the rotary ones, features of three encoder
layers that are added to the first decoder layers (DeepStack, arXiv:2406.04334), normalised queries and keys,
and rotary axes that alternate. Source: arXiv:2511.21631, section 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn

from torchtune_qwenvl.arguments import takes_arguments_of
from torchtune_qwenvl.models.parts import VISION_EPS, merger, swiglu, text_rotary, two_linears
from torchtune_qwenvl.models.qwen3_vl._weights import QWEN3_VL_WEIGHTS
from torchtune_qwenvl.models.towers import TextShape, VisionShape, decoder, vision_encoder
from torchtune_qwenvl.modules.decoder import VisionLanguageDecoder
from torchtune_qwenvl.modules.norm import LayerNorm
from torchtune_qwenvl.modules.rope import interleaved_axes
from torchtune_qwenvl.modules.vision.learned_positions import LearnedPositions, bilinear
from torchtune_qwenvl.modules.vision.transformer import VisionTransformer

text_arguments = takes_arguments_of(TextShape, mrope_section=(24, 20, 20), rope_theta=5e6)


@takes_arguments_of(VisionShape, patch_size=16)
def qwen3_vl_vision_encoder(
    *, deepstack_layers: Sequence[int], position_side: int = 48, **sizes: Any
) -> VisionTransformer:
    """ViT with learned positions and DeepStack mergers: pixels, grids -> visual tokens.

    Args:
        deepstack_layers: layers after which a merger makes features for the decoder.
        position_side: rows and columns of the table of learned positions.
        **sizes: arguments of `VisionShape`.
    """
    shape = VisionShape(**sizes)
    width, inner = shape.width, shape.inner_width
    norm = partial(LayerNorm, eps=VISION_EPS)
    make_merger = partial(merger, width, shape.out_width, shape.merge_size, adapter=shape.merger_adapter)
    return vision_encoder(
        shape,
        weights=QWEN3_VL_WEIGHTS,
        norm=norm,
        mlp=lambda: two_linears(width, inner, width, activation=nn.GELU("tanh"), adapter=shape.adapter),
        merger=make_merger(norm=norm(width)),
        patch_bias=True,
        position_embed=LearnedPositions(side=position_side, width=width, stretch=bilinear),
        deepstack_mergers={
            layer: make_merger(norm=norm(width * shape.merge_size**2), norm_after=True)
            for layer in deepstack_layers
        },
    )


@text_arguments
def qwen3_vl_decoder(*, head_dim: int, **sizes: Any) -> VisionLanguageDecoder:
    """Qwen3 with interleaved M-RoPE: embeddings and positions [n, 3] -> states.

    Args:
        head_dim: width of a head.
        **sizes: arguments of `TextShape`.
    """
    shape = TextShape(**sizes)
    return qwen3_decoder(
        shape,
        head_dim,
        lambda _: swiglu(shape.width, shape.inner_width, bias=False, adapter=shape.adapter),
    )


def qwen3_decoder(shape: TextShape, head_dim: int, mlp: Callable[[int], nn.Module]) -> VisionLanguageDecoder:
    """Qwen3's decoder, in which `mlp(i)` makes the MLP of layer i."""
    axes = interleaved_axes(shape.mrope_section)
    return decoder(
        shape,
        head_dim=head_dim,
        qkv_bias=False,
        qk_norm=True,
        rotary=text_rotary(head_dim, axes, shape.rope_theta, shape.rope_scaling),
        mlp=mlp,
    )
