"""What one transformer layer costs: each kernel of modules/layers.py and modules/experts, by its sizes.

n tokens, w width, a and g widths of queries and of keys, i inner width of an MLP, k experts of a token.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torchtune.modules import TransformerSelfAttentionLayer

from torchtune_qwenvl.estimating.cards import Card
from torchtune_qwenvl.estimating.tally import HALF, WIDE, Tally, trains
from torchtune_qwenvl.modules.attention import _VARLEN_SHARES_KV_HEADS
from torchtune_qwenvl.modules.experts.moe import SparseMoE
from torchtune_qwenvl.modules.layers import Attention


def layer_cost(
    layer: TransformerSelfAttentionLayer, n: int, pairs: float, learns: bool, card: Card, sharded: bool
) -> Tally:
    """Cost of one layer without recomputing it.

    Args:
        layer: of either tower.
        n: tokens or patches.
        pairs: how many pairs of them attend to each other.
        learns: something before the layer trains.
        card: the GPU.
        sharded: see `Tally`.

    Raises:
        ValueError: an attention that the estimate does not know.
    """
    tally = Tally(card, sharded)
    width = layer.attn.q_proj.weight.shape[-1]
    tally.norm(layer.sa_norm, n, width, learns)
    learns = learns or trains(layer.sa_norm)
    after = learns or trains(layer.attn)
    _attention(tally, layer.attn, n, pairs, learns)
    tally.norm(layer.sa_scale, n, width, after)
    _residual(tally, n, width, after)
    tally.norm(layer.mlp_norm, n, width, after)
    _mlp(tally, layer.mlp, n, after or trains(layer.mlp_norm))
    after = after or trains(layer.mlp)
    tally.norm(layer.mlp_scale, n, width, after)
    _residual(tally, n, width, after)
    return tally


def _residual(tally: Tally, n: int, width: int, learns: bool) -> None:
    """x + branch(x): a sum, and one of the gradients."""
    moved = 3.0 * HALF * n * width
    tally.move(moved, moved if learns else 0.0)


def _attention(tally: Tally, attention: nn.Module, n: int, pairs: float, learns: bool) -> None:
    if not isinstance(attention, Attention):
        raise ValueError(f"estimate: expected layers of softmax attention, got {type(attention).__name__}")
    found: Any = attention
    a, g = found.q_proj.weight.shape[-2], found.k_proj.weight.shape[-2]
    heads = a // found.head_dim
    linears = (found.q_proj, found.k_proj, found.v_proj)
    tally.linears(linears, n, learns)
    learns = learns or any(map(trains, linears))
    for norm, width in ((found.q_norm, a), (found.k_norm, g)):
        tally.norm(norm, n, width, learns)
    _rotation(tally, n, a + g, decoder=found.causal, learns=learns)
    shared = a == g or _VARLEN_SHARES_KV_HEADS
    g = g if shared else a
    flops = 4.0 * a * pairs
    moved = 2.0 * HALF * n * (a + g)
    seconds = tally.card.computing(flops, moved, tally.card.attention)
    tally.forward += seconds
    if learns:
        tally.backward += tally.card.computing(2.5 * flops, 2 * moved, tally.card.attention)
        tally.keep(a, a, g, g, rows=n)  # q, the result, k, v
        tally.keep(heads, rows=n, size=WIDE)
    before = tally.kept
    tally.linears((found.output_proj,), n, learns)
    if learns and trains(found.output_proj):  # its input is attention's result, which is kept already
        tally.kept = before + (tally.kept - before - HALF * n * a)


def _rotation(tally: Tally, n: int, width: int, decoder: bool, learns: bool) -> None:
    """Halves are multiplied in four kernels; the encoder does it in fp32 and casts before and after."""
    size = HALF if decoder else WIDE
    casts = 0.0 if decoder else 2 * (HALF + WIDE)
    moved = float(n * width * (6 * size + casts))
    tally.move(moved, moved if learns else 0.0)


def _mlp(tally: Tally, mlp: Any, n: int, learns: bool) -> None:
    if isinstance(mlp, SparseMoE):
        return _experts(tally, mlp, n, learns)
    ups = [mlp.w1, *([mlp.w3] if mlp.w3 is not None else [])]
    inner, width = mlp.w1.weight.shape[-2:]
    tally.linears(ups, n, learns)
    learns = learns or any(map(trains, ups))
    twice = not isinstance(mlp.activation, (nn.SiLU, nn.GELU))  # x * sigmoid(1.702 x) keeps the sigmoid too
    gated = mlp.w3 is not None
    steps = 2 + 3 * gated + 5 * twice
    tally.move(steps * HALF * n * inner, (3 + 6 * gated + 8 * twice) * HALF * n * inner if learns else 0.0)
    if learns:
        tally.keep(*[inner] * (1 + 2 * gated + twice), rows=n)
    kept = trains(mlp.w2)
    tally.linears((mlp.w2,), n, learns)
    if learns:
        grads = (3 if gated else 2) * inner - kept * inner
        tally.extra = max(tally.extra, HALF * n * (grads + width))


def _experts(tally: Tally, moe: SparseMoE, n: int, learns: bool) -> None:
    experts: Any = moe.experts
    e, double, w = experts.w1.weight.shape
    k, i = moe.router.top_k, double // 2
    rows = n * k
    tally.linears((moe.router,), n, learns)
    tally.move(n * e * 3.0 * WIDE, n * e * 3.0 * WIDE if learns else 0.0)
    tally.move(rows * 8.0 * 8)  # sorting and placing
    tally.move(2.0 * HALF * rows * w, HALF * (rows + n) * w if learns else 0.0)  # spread
    _grouped(tally, experts.w1, rows, learns)
    inner = learns or trains(experts.w1)
    tally.move(8.0 * HALF * rows * i, (17.0 if inner else 0.0) * HALF * rows * i)
    _grouped(tally, experts.w2, rows, inner)
    tally.move(HALF * (rows + n) * w, 2.0 * HALF * rows * w if inner else 0.0)  # collect
    if inner:
        tally.keep(e, k, rows=n, size=WIDE)
        tally.keep(4 * k, rows=n, size=8)
        tally.keep(2 * i, i, i, rows=rows)
        tally.extra = max(tally.extra, HALF * rows * max(w + 2 * i, 5 * i))
    if moe.shared is not None:
        _mlp(tally, moe.shared, n, learns)
        _residual(tally, n, w, learns)


def _grouped(tally: Tally, linear: Any, rows: int, learns: bool) -> None:
    """A product per expert; the rows are spread evenly."""
    e, o, i = linear.weight.shape
    tally.product(rows, i, o, int(learns) + int(linear.weight.requires_grad), experts=e)
    if trains(linear):
        tally.keep(i, rows=rows)
    if linear.weight.requires_grad and not tally.sharded:
        tally.move((WIDE + HALF) * linear.weight.numel(), (WIDE + HALF) * linear.weight.numel())
    lora_a = getattr(linear, "lora_a", None)
    if lora_a is not None:
        rank = lora_a.weight.shape[-2]
        tally.product(rows, i, rank, 1 + int(learns), experts=e)
        tally.product(rows, rank, o, 2, experts=e)
        tally.move(HALF * rows * (2 * rank + 3 * o), HALF * rows * 2 * rank)
        tally.keep(rank, rank, rows=rows)
