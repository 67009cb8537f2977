"""The two towers of GLM-4.1V. Source: arXiv:2507.01006, section 2."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from torchtune_qwenvl.arguments import takes_arguments_of
from torchtune_qwenvl.models.glm4v._weights import GLM4V_WEIGHTS
from torchtune_qwenvl.models.parts import swiglu, text_rotary
from torchtune_qwenvl.models.towers import TextShape, VisionShape, decoder, vision_encoder
from torchtune_qwenvl.modules.decoder import VisionLanguageDecoder
from torchtune_qwenvl.modules.norm import LayerNorm, RMSNorm
from torchtune_qwenvl.modules.rope import chunked_axes
from torchtune_qwenvl.modules.vision.layers import GatedPatchMerger
from torchtune_qwenvl.modules.vision.learned_positions import LearnedPositions, bicubic
from torchtune_qwenvl.modules.vision.transformer import VisionTransformer


@takes_arguments_of(VisionShape)
def glm4v_vision_encoder(
    *, table_side: int = 24, norm_eps: float = 1e-5, qkv_bias: bool = False, **sizes: Any
) -> VisionTransformer:
    """AIMv2-like ViT with stretched learned positions and rotary ones: pixels, grids -> visual tokens.

    `inner_width` is the hidden width of the merger's MLP; that of the layers' MLPs is `out_width`.

    Args:
        table_side: rows and columns of the table of learned positions.
        norm_eps: epsilon of every RMSNorm.
        qkv_bias: whether q, k and v have a bias.
        **sizes: arguments of `VisionShape`.
    """
    shape = VisionShape(**sizes)
    width, out = shape.width, shape.out_width
    norm = partial(RMSNorm, eps=norm_eps)
    return vision_encoder(
        shape,
        weights=GLM4V_WEIGHTS,
        norm=norm,
        mlp=lambda: swiglu(width, out, bias=False, adapter=shape.adapter),
        qkv_bias=qkv_bias,
        output_bias=False,
        patch_bias=True,
        patch_norm=norm(width),
        position_embed=LearnedPositions(side=table_side, width=width, stretch=bicubic),
        merger=GatedPatchMerger(
            norm=norm(width),
            downsample=nn.Linear(width * shape.merge_size**2, out),
            proj=nn.Linear(out, out, bias=False),
            proj_norm=LayerNorm(out),
            mlp=swiglu(out, shape.inner_width, bias=False, adapter=shape.merger_adapter),
            merge=shape.merge_size,
        ),
    )


@takes_arguments_of(TextShape, norm_eps=1e-5, mrope_section=(8, 12, 12), rope_theta=1e4)
def glm4v_decoder(*, rotary_dim: int | None = None, **sizes: Any) -> VisionLanguageDecoder:
    """GLM-4 with M-RoPE and four norms per layer: embeddings and positions [n, 3] -> states.

    Args:
        rotary_dim: how many values of a head are rotated; default half of them.
        **sizes: arguments of `TextShape`.
    """
    shape = TextShape(**sizes)
    rotary_dim = rotary_dim or shape.width // shape.num_heads // 2
    axes = chunked_axes(shape.mrope_section)
    return decoder(
        shape,
        rotary=text_rotary(rotary_dim, axes, shape.rope_theta, shape.rope_scaling, neighbours=True),
        mlp=lambda _: swiglu(shape.width, shape.inner_width, bias=False, adapter=shape.adapter),
        norm_branches=True,
    )
