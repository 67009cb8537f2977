"""What the families' towers are put together from: torchtune's parts in the skeleton's slots.

A family chooses norms, activations, biases and rotary axes; nothing here knows which family asks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn
from torchtune.modules import FeedForward

from torchtune_qwenvl.modules.decoder import TiedOutput, VisionLanguageDecoder
from torchtune_qwenvl.modules.layers import Attention, TransformerLayer
from torchtune_qwenvl.modules.lora import Adapter, Training, make_linear
from torchtune_qwenvl.modules.norm import RMSNorm
from torchtune_qwenvl.modules.rope import AxialRotary, inverse_frequencies, yarn_frequencies
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel
from torchtune_qwenvl.modules.vision_layers import PatchMerger
from torchtune_qwenvl.modules.vision_transformer import VisionTransformer

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
    qk_norm_eps: float | None = None,
    adapter: Adapter | None,
) -> Attention:
    """Grouped-query attention; with `qk_norm_eps` every query and key head is RMS-normalised first."""
    head_dim = head_dim or width // heads
    shapes = {
        "q_proj": (width, heads * head_dim, qkv_bias),
        "k_proj": (width, kv_heads * head_dim, qkv_bias),
        "v_proj": (width, kv_heads * head_dim, qkv_bias),
        "output_proj": (heads * head_dim, width, output_bias),
    }
    linears = {
        name: make_linear(name, i, o, bias=bias, adapter=adapter) for name, (i, o, bias) in shapes.items()
    }
    norms = {}
    if qk_norm_eps is not None:
        norms = {name: RMSNorm(head_dim, qk_norm_eps) for name in ("q_norm", "k_norm")}
    return Attention(**linears, **norms, head_dim=head_dim, causal=causal)


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
    """A quarter of the head turned by the row, a quarter by the column, each with its partner half."""
    axis = inverse_frequencies(head_dim // 2, VISION_THETA)
    return AxialRotary(axis.repeat(2), [0] * len(axis) + [1] * len(axis))


def text_rotary(
    head_dim: int, axes: Sequence[int], rope_theta: float, yarn: Mapping[str, Any] | None = None
) -> AxialRotary:
    """M-RoPE: `axes` says for each frequency which position turns it; `yarn` of a stretched context."""
    if yarn is None:
        return AxialRotary(inverse_frequencies(head_dim, rope_theta), axes)
    frequencies, scale = yarn_frequencies(head_dim, rope_theta, **yarn)
    return AxialRotary(frequencies, axes, scale)


def decoder(
    *,
    vocab_size: int,
    depth: int,
    width: int,
    num_kv_heads: int,
    head_dim: int,
    tied: bool,
    norm_eps: float,
    rotary: AxialRotary,
    attention: Callable[[], nn.Module],
    mlp: Callable[[int], nn.Module],
) -> VisionLanguageDecoder:
    """A pre-norm RMS decoder; `attention()` and `mlp(i)` make the parts of layer i."""
    layers = [
        TransformerLayer(
            attention(), mlp(i), sa_norm=RMSNorm(width, norm_eps), mlp_norm=RMSNorm(width, norm_eps)
        )
        for i in range(depth)
    ]
    tok_embeddings = nn.Embedding(vocab_size, width)
    return VisionLanguageDecoder(
        tok_embeddings=tok_embeddings,
        layers=layers,
        norm=RMSNorm(width, norm_eps),
        output=TiedOutput(tok_embeddings) if tied else nn.Linear(width, vocab_size, bias=False),
        rotary=rotary,
        kv_heads=num_kv_heads,
        head_dim=head_dim,
    )


def assemble(
    config: Mapping[str, Any],
    vision_encoder: VisionTransformer,
    decoder: VisionLanguageDecoder,
    training: Training,
    loss_chunk_tokens: int,
    router_aux_loss_coef: float = 0.0,
) -> VisionLanguageModel:
    """The model of two towers and a normalised config."""
    return VisionLanguageModel(
        vision_encoder=vision_encoder,
        decoder=decoder,
        image_token_id=config["image_token_id"],
        video_token_id=config["video_token_id"],
        training_plan=training,
        config=config,
        loss_chunk_tokens=loss_chunk_tokens,
        router_aux_loss_coef=router_aux_loss_coef,
    )
