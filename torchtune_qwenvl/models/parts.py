"""The parts of the families' towers; torchtune's if they fit.

A family chooses norms, activations, biases and rotary axes. Nothing here depends on the family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn
from torchtune.modules import FeedForward

from torchtune_qwenvl.modules.adapters.lora import Adapter, make_linear
from torchtune_qwenvl.modules.delta_net.convolution import ConvolvedProjections
from torchtune_qwenvl.modules.delta_net.gate import GatedOutput
from torchtune_qwenvl.modules.delta_net.mixer import GatedDeltaNet
from torchtune_qwenvl.modules.gated_attention import GatedAttention
from torchtune_qwenvl.modules.layers import Attention
from torchtune_qwenvl.modules.rope import AxialRotary, inverse_frequencies
from torchtune_qwenvl.modules.rope_scaling import scaled_frequencies
from torchtune_qwenvl.modules.vision.layers import PatchMerger

VISION_EPS = 1e-6  # fixed in the references, no entry of config.json
VISION_THETA = 1e4


def attention(
    width: int,
    heads: int,
    kv_heads: int,
    *,
    head_dim: int | None = None,
    causal: bool,
    qkv_bias: bool = True,
    output_bias: bool,
    qk_norm: Callable[[int], nn.Module] | None = None,
    gated: bool = False,
    dropout: float = 0.0,
    adapter: Adapter | None,
) -> Attention:
    """Grouped-query attention; `qk_norm(head_dim)` makes the norms of query and key heads.

    With `gated`, `q_proj` is twice as wide and its second half gates the result.
    """
    head_dim = head_dim or width // heads
    shapes = {
        "q_proj": (width, heads * head_dim * (2 if gated else 1), qkv_bias),
        "k_proj": (width, kv_heads * head_dim, qkv_bias),
        "v_proj": (width, kv_heads * head_dim, qkv_bias),
        "output_proj": (heads * head_dim, width, output_bias),
    }
    linears = {
        name: make_linear(name, i, o, bias=bias, adapter=adapter) for name, (i, o, bias) in shapes.items()
    }
    norms = {name: qk_norm(head_dim) for name in ("q_norm", "k_norm")} if qk_norm else {}
    kind = GatedAttention if gated else Attention
    return kind(**linears, **norms, head_dim=head_dim, kv_heads=kv_heads, causal=causal, dropout=dropout)


def delta_net(
    width: int,
    *,
    key_heads: int,
    value_heads: int,
    key_width: int,
    value_width: int,
    taps: int,
    norm_eps: float,
    adapter: Adapter | None,
) -> GatedDeltaNet:
    """A gated delta net. The projections to one number per head are small and stay plain linears."""
    keys, values = key_heads * key_width, value_heads * value_width

    def linear(name: str, in_width: int, out_width: int) -> nn.Module:
        return make_linear(name, in_width, out_width, bias=False, adapter=adapter)

    return GatedDeltaNet(
        conv=ConvolvedProjections(
            q_proj=linear("q_proj", width, keys),
            k_proj=linear("k_proj", width, keys),
            v_proj=linear("v_proj", width, values),
            widths=(keys, keys, values),
            taps=taps,
        ),
        decay_proj=nn.Linear(width, value_heads, bias=False),
        beta_proj=nn.Linear(width, value_heads, bias=False),
        gate=GatedOutput(
            q_proj=linear("q_proj", width, values),
            output_proj=linear("output_proj", values, width),
            width=value_width,
            eps=norm_eps,
        ),
        keys=(key_heads, key_width),
        values=(value_heads, value_width),
    )


def swiglu(width: int, inner: int, *, bias: bool, adapter: Adapter | None) -> FeedForward:
    """width -> inner, gated by SiLU -> width."""
    return FeedForward(
        gate_proj=make_linear("w1", width, inner, bias=bias, adapter=adapter),
        down_proj=make_linear("w2", inner, width, bias=bias, adapter=adapter),
        up_proj=make_linear("w3", width, inner, bias=bias, adapter=adapter),
    )


def two_linears(
    width: int, inner: int, out: int, *, activation: nn.Module, adapter: Adapter | None
) -> FeedForward:
    """width -> inner, activation -> out, both with bias."""
    return FeedForward(
        gate_proj=make_linear("w1", width, inner, bias=True, adapter=adapter),
        down_proj=make_linear("w2", inner, out, bias=True, adapter=adapter),
        activation=activation,
    )


def merger(
    width: int,
    out_width: int,
    merge: int,
    *,
    norm: nn.Module,
    norm_after: bool = False,
    adapter: Adapter | None,
) -> PatchMerger:
    """merge x merge patches -> one visual token, through a GELU MLP."""
    inner = width * merge * merge
    mlp = two_linears(inner, inner, out_width, activation=nn.GELU(), adapter=adapter)
    return PatchMerger(norm=norm, mlp=mlp, merge=merge, norm_after=norm_after)


def vision_rotary(head_dim: int) -> AxialRotary:
    """Rotary positions of patches: a quarter of the head is turned by the row and a quarter by the column.

    Each value is turned together with its partner in the other half of the head.
    """
    axis = inverse_frequencies(head_dim // 2, VISION_THETA)
    return AxialRotary(axis.repeat(2), [0] * len(axis) + [1] * len(axis))


def text_rotary(
    rotary_dim: int,
    axes: Sequence[int],
    rope_theta: float,
    rope_scaling: Mapping[str, Any] | None = None,
    *,
    neighbours: bool = False,
) -> AxialRotary:
    """M-RoPE on the first `rotary_dim` values of a head.

    `axes` says for each frequency which position turns it. `rope_scaling` is given if the context was
    stretched. `neighbours` turns pairs (2i, 2i + 1) instead of pairs half a head apart.
    """
    if rope_scaling is None:
        return AxialRotary(inverse_frequencies(rotary_dim, rope_theta), axes, neighbours=neighbours)
    scaled = scaled_frequencies(rotary_dim, rope_theta, rope_scaling)
    return AxialRotary(scaled.frequencies, axes, scaled.scale, neighbours, scaled.by_length)
