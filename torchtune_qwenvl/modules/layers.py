"""The one attention and the one transformer layer of both towers; what differs between them is handed in.

Both work on flat tokens [n, w]: n tokens of all images or all rows, w model width, h heads, g key/value
heads, d head width. Which tokens meet is said by `Segments`, where they stand by `Rotation`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchtune.modules import TransformerSelfAttentionLayer

from torchtune_qwenvl.modules.attention import Segments, segment_attention
from torchtune_qwenvl.modules.kv_cache import LayerCache
from torchtune_qwenvl.modules.rope import Rotation, rotate


class Attention(nn.Module):
    """Multi-head attention over segments, with rotary positions and grouped key/value heads.

    torchtune's MultiHeadAttention expands key/value heads, takes dense masks only and normalises q and k
    after the rotation; hence our own.

    Args:
        q_proj: w -> h * d.
        k_proj: w -> g * d.
        v_proj: w -> g * d.
        output_proj: h * d -> w.
        head_dim: d.
        causal: whether a token sees only what is left of it in its segment.
        q_norm: normalises each query head before the rotation, if given.
        k_norm: the same for keys.
        dropout: share of attention weights that are dropped in training.
    """

    def __init__(
        self,
        *,
        q_proj: nn.Module,
        k_proj: nn.Module,
        v_proj: nn.Module,
        output_proj: nn.Module,
        head_dim: int,
        causal: bool,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = q_proj, k_proj, v_proj
        self.output_proj = output_proj
        self.q_norm, self.k_norm = q_norm, k_norm
        self.head_dim, self.causal, self.dropout = head_dim, causal, dropout

    def forward(
        self, x: Tensor, *, rotation: Rotation | None, segments: Segments, cache: LayerCache | None = None
    ) -> Tensor:
        """x [n, w] -> [n, w]. With a cache, n = b * s in the prompt and n = b afterwards."""
        q, k, v = (p(x).unflatten(-1, (-1, self.head_dim)) for p in (self.q_proj, self.k_proj, self.v_proj))
        if self.q_norm is not None:
            q = self.q_norm(q)
        if self.k_norm is not None:
            k = self.k_norm(k)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        return self._attend(q, k, v, segments, cache)

    # How many segments there are, and how long, differs from batch to batch. The projection is in here as
    # its input is a view of attention's result, and a compiler would take note of that one's shape, too.
    @torch.compiler.disable
    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, segments: Segments, cache: LayerCache | None
    ) -> Tensor:
        """q [n, h, d], k and v [n, g, d] -> [n, w]."""
        if cache is not None and not cache.cache.prefilling:
            out = cache.attend(q, k, v)
        else:
            if cache is not None:
                cache.store_prompt(k, v)
            dropout = self.dropout if self.training else 0.0
            out = segment_attention(q, k, v, segments, self.causal, dropout)
        return self.output_proj(out.flatten(1))


class TransformerLayer(TransformerSelfAttentionLayer):
    """Pre-norm layer on flat tokens.

    A subclass of torchtune's, which activation checkpointing, compiling and sharding look for by type. Its
    slots `sa_scale` and `mlp_scale` act on what a branch adds to the stream (a second norm in some families).
    """

    def forward(  # type: ignore[override]
        self, x: Tensor, *, rotation: Rotation | None, segments: Segments, cache: LayerCache | None = None
    ) -> Tensor:
        """x [n, w] -> [n, w]."""
        attended = self.attn(self.sa_norm(x), rotation=rotation, segments=segments, cache=cache)
        x = x + self.sa_scale(attended)
        return x + self.mlp_scale(self.mlp(self.mlp_norm(x)))
