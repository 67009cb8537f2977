"""The two towers of Qwen3.5.

The encoder is Qwen3-VL's without DeepStack. Three of four decoder layers have a gated delta net, the others
have gated attention, which rotates a part of each head. Norms scale by 1 + w, but for the delta nets' own.
Source: transformers' `qwen3_5`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from torchtune_qwenvl.arguments import takes_arguments_of
from torchtune_qwenvl.models.parts import attention, delta_net, swiglu, text_rotary
from torchtune_qwenvl.models.qwen3_5._hf_config import LINEAR
from torchtune_qwenvl.models.qwen3_vl import qwen3_vl_vision_encoder
from torchtune_qwenvl.models.towers import TextShape, VisionShape, decoder
from torchtune_qwenvl.modules.decoder import VisionLanguageDecoder
from torchtune_qwenvl.modules.layers import TransformerLayer
from torchtune_qwenvl.modules.norm import CentredRMSNorm
from torchtune_qwenvl.modules.prediction import MultiTokenPrediction
from torchtune_qwenvl.modules.rope import interleaved_axes
from torchtune_qwenvl.modules.vision.transformer import VisionTransformer


@takes_arguments_of(VisionShape, patch_size=16)
def qwen3_5_vision_encoder(*, position_side: int = 48, **sizes: Any) -> VisionTransformer:
    """ViT with learned positions: pixels, grids -> visual tokens.

    Args:
        position_side: rows and columns of the table of learned positions.
        **sizes: arguments of `VisionShape`.
    """
    return qwen3_vl_vision_encoder(deepstack_layers=(), position_side=position_side, **sizes)


# Arguments of `TextShape` -> entries of the text part, as far as the prediction layers need them.
_SHAPE = {
    "vocab_size": "vocab_size",
    "depth": "mtp_num_hidden_layers",
    "width": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "inner_width": "intermediate_size",
    "norm_eps": "rms_norm_eps",
}
text_arguments = takes_arguments_of(TextShape, mrope_section=(11, 11, 10), rope_theta=1e7)


@text_arguments
def qwen3_5_decoder(
    *,
    head_dim: int,
    rotary_dim: int,
    layer_types: Sequence[str],
    key_heads: int,
    value_heads: int,
    key_width: int,
    value_width: int,
    taps: int,
    **sizes: Any,
) -> VisionLanguageDecoder:
    """Delta nets and gated attention with interleaved M-RoPE: embeddings and positions [n, 3] -> states.

    Args:
        head_dim: width of a head of attention.
        rotary_dim: how many values of it are rotated.
        layer_types: "linear_attention" or "full_attention" for each layer.
        key_heads: heads of queries and keys in a delta net.
        value_heads: heads of values there.
        key_width: width of a query or key there.
        value_width: width of a value there.
        taps: width of the convolution there.
        **sizes: arguments of `TextShape`.
    """
    shape = TextShape(**sizes)
    linear = {
        **{"key_heads": key_heads, "value_heads": value_heads},
        **{"key_width": key_width, "value_width": value_width, "taps": taps},
    }
    return hybrid_decoder(
        shape,
        head_dim=head_dim,
        rotary_dim=rotary_dim,
        layer_types=layer_types,
        linear=linear,
        mlp=lambda _: swiglu(shape.width, shape.inner_width, bias=False, adapter=shape.adapter),
    )


def hybrid_decoder(
    shape: TextShape,
    *,
    head_dim: int,
    rotary_dim: int,
    layer_types: Sequence[str],
    linear: dict[str, int],
    mlp: Callable[[int], nn.Module],
) -> VisionLanguageDecoder:
    """Qwen3.5's decoder, in which `mlp(i)` makes the MLP of layer i; `linear` are sizes of the delta nets."""

    def mixer(layer: int) -> nn.Module:
        if layer_types[layer] == LINEAR:
            return delta_net(shape.width, **linear, norm_eps=shape.norm_eps, adapter=shape.adapter)
        return gated_attention(shape, head_dim)

    axes = interleaved_axes(shape.mrope_section)
    return decoder(
        shape,
        rotary=text_rotary(rotary_dim, axes, shape.rope_theta, shape.rope_scaling),
        mlp=mlp,
        mixer=mixer,
        norm=CentredRMSNorm,
    )


def gated_attention(shape: TextShape, head_dim: int) -> nn.Module:
    """Attention with a gate, normalised queries and keys, and no biases."""
    return attention(
        shape.width,
        shape.num_heads,
        shape.num_kv_heads,
        head_dim=head_dim,
        causal=True,
        qkv_bias=False,
        output_bias=False,
        qk_norm=lambda width: CentredRMSNorm(width, shape.norm_eps),
        gated=True,
        adapter=shape.adapter,
    )


def prediction_layers(
    config: Mapping[str, Any], mlp: Callable[[TextShape], nn.Module] | None = None
) -> MultiTokenPrediction:
    """The layers `mtp.*` of a normalised config: one decoder layer with attention; they share the head.

    Args:
        config: of the whole model.
        mlp: makes the layer's MLP; None: a dense one.
    """
    text = config["text_config"]
    shape = TextShape(
        **{name: text[entry] for name, entry in _SHAPE.items()}, tied=config["tie_word_embeddings"]
    )

    def norm() -> nn.Module:
        return CentredRMSNorm(shape.width, shape.norm_eps)

    dense = swiglu(shape.width, shape.inner_width, bias=False, adapter=None) if mlp is None else mlp(shape)
    layer = TransformerLayer(gated_attention(shape, text["head_dim"]), dense, sa_norm=norm(), mlp_norm=norm())
    return MultiTokenPrediction(
        pre_fc_norm_embedding=norm(),
        pre_fc_norm_hidden=norm(),
        fc=nn.Linear(2 * shape.width, shape.width, bias=False),
        layers=[layer],
        norm=norm(),
    )
