"""The two towers of every family, vision encoder and decoder: torchtune's parts in the skeleton's slots.

A family chooses norms, activations, biases, positions and rotary axes. What all families share, above all the
arguments for sizes, is here. Nothing here depends on the family.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from torchtune_qwenvl.models.parts import attention, vision_rotary
from torchtune_qwenvl.models.weight_table import WeightTable
from torchtune_qwenvl.modules.adapters.lora import Adapter
from torchtune_qwenvl.modules.decoder import TiedOutput, VisionLanguageDecoder
from torchtune_qwenvl.modules.layers import TransformerLayer
from torchtune_qwenvl.modules.norm import RMSNorm
from torchtune_qwenvl.modules.rope import AxialRotary
from torchtune_qwenvl.modules.vision.cls_token import ClsToken
from torchtune_qwenvl.modules.vision.layers import PatchEmbed
from torchtune_qwenvl.modules.vision.transformer import VisionTransformer


@dataclass(frozen=True, kw_only=True)
class VisionShape:
    """Arguments of every vision encoder's builder.

    Args:
        depth: number of layers.
        width: width of the encoder.
        num_heads: attention heads; a head's width is a multiple of 4.
        inner_width: hidden width of the MLPs.
        out_width: width of a visual token, which is the decoder's width.
        patch_size: side of a patch in pixels.
        temporal_patch_size: frames per patch.
        in_channels: colour channels.
        merge_size: patches per side of a visual token.
        image_mean: mean per channel, in 0 .. 1; needed for uint8 pixels.
        image_std: standard deviation per channel; needed for uint8 pixels.
        adapter: LoRA on the layers.
        merger_adapter: LoRA on the mergers.
    """

    depth: int
    width: int
    num_heads: int
    inner_width: int
    out_width: int
    patch_size: int = 14
    temporal_patch_size: int = 2
    in_channels: int = 3
    merge_size: int = 2
    image_mean: Sequence[float] | None = None
    image_std: Sequence[float] | None = None
    adapter: Adapter | None = None
    merger_adapter: Adapter | None = None


@dataclass(frozen=True, kw_only=True)
class TextShape:
    """Arguments of every decoder's builder.

    Args:
        vocab_size: rows of embeddings and head, padding rows included.
        depth: number of layers.
        width: width of the residual stream.
        num_heads: query heads.
        num_kv_heads: key/value heads.
        inner_width: hidden width of the MLPs.
        tied: whether the head shares the embeddings' weight.
        norm_eps: epsilon of every RMSNorm.
        mrope_section: how many frequencies t, h and w turn; they sum to half a head's rotated width.
        rope_theta: base of the frequencies.
        rope_scaling: `rope_type` and arguments of a rule of `modules.rope_scaling`; None: the context was not
            stretched.
        adapter: LoRA on the layers.
    """

    vocab_size: int
    depth: int
    width: int
    num_heads: int
    num_kv_heads: int
    inner_width: int
    tied: bool
    norm_eps: float = 1e-6
    mrope_section: Sequence[int] = (16, 24, 24)
    rope_theta: float = 1e6
    rope_scaling: Mapping[str, Any] | None = None
    adapter: Adapter | None = None


def vision_encoder(
    shape: VisionShape,
    *,
    norm: Callable[[int], nn.Module],
    mlp: Callable[[], nn.Module],
    merger: nn.Module,
    head_dim: int | None = None,
    qkv_bias: bool = True,
    output_bias: bool = True,
    patch_bias: bool = False,
    pixel_norm: nn.Module | None = None,
    patch_norm: nn.Module | None = None,
    rotary: bool = True,
    position_embed: nn.Module | None = None,
    cls_token: ClsToken | None = None,
    dropout: float = 0.0,
    deepstack_mergers: Mapping[int, nn.Module] | None = None,
    window_size: int | None = None,
    full_attention: Collection[int] = (),
    config: Mapping[str, Any] | None = None,
    weights: WeightTable | None = None,
) -> VisionTransformer:
    """A pre-norm ViT; `norm(width)` and `mlp()` make the parts of a layer, `window_size` is in pixels.

    `dropout` acts on embedded patches, attention weights and the output of each branch; what `mlp()` makes
    brings its own inside.
    """
    heads, width = shape.num_heads, shape.width
    head_dim = head_dim or width // heads
    branch = {slot: nn.Dropout(dropout) for slot in ("sa_scale", "mlp_scale")} if dropout else {}
    layers = [
        TransformerLayer(
            attention(
                width,
                heads,
                heads,
                head_dim=head_dim,
                causal=False,
                qkv_bias=qkv_bias,
                output_bias=output_bias,
                dropout=dropout,
                adapter=shape.adapter,
            ),
            mlp(),
            sa_norm=norm(width),
            mlp_norm=norm(width),
            **branch,
        )
        for _ in range(shape.depth)
    ]
    return VisionTransformer(
        patch_embed=PatchEmbed(
            channels=shape.in_channels,
            frames=shape.temporal_patch_size,
            patch=shape.patch_size,
            width=width,
            bias=patch_bias,
            mean=shape.image_mean,
            std=shape.image_std,
            pixel_norm=pixel_norm,
        ),
        patch_norm=patch_norm,
        position_embed=position_embed,
        cls_token=cls_token,
        embed_dropout=nn.Dropout(dropout) if dropout else None,
        layers=layers,
        merger=merger,
        deepstack_mergers=deepstack_mergers,
        rotary=vision_rotary(head_dim) if rotary else None,
        merge=shape.merge_size,
        width=width,
        out_width=shape.out_width,
        window=window_size and window_size // shape.patch_size // shape.merge_size,
        full_attention=full_attention,
        config=config,
        from_original=None if weights is None else weights.of_encoder,
    )


def decoder(
    shape: TextShape,
    *,
    head_dim: int | None = None,
    qkv_bias: bool = True,
    qk_norm: bool = False,
    rotary: AxialRotary,
    mlp: Callable[[int], nn.Module],
    mixer: Callable[[int], nn.Module] | None = None,
    norm: Callable[[int, float], nn.Module] = RMSNorm,
    norm_branches: bool = False,
) -> VisionLanguageDecoder:
    """A pre-norm decoder; `mlp(i)` makes the MLP of layer i, `norm(width, eps)` every norm.

    `mixer(i)` makes what takes the place of attention in layer i; without it every layer has attention with
    `head_dim`, `qkv_bias` and `qk_norm`, by which every query and key head is normalised before it is
    rotated. With `norm_branches`, what attention and MLP add to the residual stream is normalised, too.
    """

    def norm_of(width: int) -> nn.Module:
        return norm(width, shape.norm_eps)

    def full_attention(_: int) -> nn.Module:
        return attention(
            shape.width,
            shape.num_heads,
            shape.num_kv_heads,
            head_dim=head_dim,
            causal=True,
            qkv_bias=qkv_bias,
            output_bias=False,
            qk_norm=norm_of if qk_norm else None,
            adapter=shape.adapter,
        )

    make_mixer = mixer or full_attention
    slots = ("sa_norm", "mlp_norm", *(("sa_scale", "mlp_scale") if norm_branches else ()))
    layers = [
        TransformerLayer(make_mixer(i), mlp(i), **{slot: norm_of(shape.width) for slot in slots})
        for i in range(shape.depth)
    ]
    tok_embeddings = nn.Embedding(shape.vocab_size, shape.width)
    head = TiedOutput(tok_embeddings) if shape.tied else nn.Linear(shape.width, shape.vocab_size, bias=False)
    return VisionLanguageDecoder(
        tok_embeddings=tok_embeddings,
        layers=layers,
        norm=norm_of(shape.width),
        output=head,
        rotary=rotary,
    )
