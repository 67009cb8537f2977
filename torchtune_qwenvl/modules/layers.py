"""The attention and the transformer layer of both towers; what differs between them are arguments.

Both work on flat tokens [n, w]: n tokens of all images or all rows, w model width, h heads, g key/value
heads, d head width. `Segments` says which tokens attend to each other, `Rotation` which positions they have.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchtune.modules import TransformerSelfAttentionLayer

from torchtune_qwenvl.modules.attention import Segments, is_one_kernel, segment_attention
from torchtune_qwenvl.modules.experts.moe import SparseMoE
from torchtune_qwenvl.modules.experts.routers import RouterStatistics
from torchtune_qwenvl.modules.kv_cache import KVCache, LayerCache
from torchtune_qwenvl.modules.rope import Rotation, rotate


class Attention(nn.Module):
    """Multi-head attention over segments, with rotary positions and grouped key/value heads.

    torchtune's MultiHeadAttention does not fit: it expands key/value heads, takes dense masks only, and
    normalises q and k after the rotation.

    Args:
        q_proj: w -> h * d.
        k_proj: w -> g * d.
        v_proj: w -> g * d.
        output_proj: h * d -> w.
        head_dim: d.
        kv_heads: g.
        causal: whether a token attends to earlier tokens of its segment only.
        q_norm: normalises each query head before the rotation; None: no norm.
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
        kv_heads: int,
        causal: bool,
        q_norm: nn.Module | None = None,
        k_norm: nn.Module | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = q_proj, k_proj, v_proj
        self.output_proj = output_proj
        self.q_norm, self.k_norm = q_norm, k_norm
        self.head_dim, self.kv_heads = head_dim, kv_heads
        self.causal, self.dropout = causal, dropout

    def forward(
        self, x: Tensor, *, rotation: Rotation | None, segments: Segments, cache: LayerCache | None = None
    ) -> Tensor:
        """x [n, w] -> [n, w]. With a cache, n = b * s in the prompt and n = b afterwards."""
        q, k = self._queries_and_keys(x, rotation)
        v = self.v_proj(x).unflatten(-1, (-1, self.head_dim))
        return self._mix(q, k, v, segments, cache)

    def attention_weights(self, x: Tensor, *, rotation: Rotation | None, segments: Segments) -> list[Tensor]:
        """Who looks at whom, in fp32: a matrix [h, l, l] for each segment of l tokens, rows sum to 1."""
        q, k = self._queries_and_keys(x, rotation)
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        found = []
        for q_part, k_part in zip(
            q.split(list(segments.lengths)), k.split(list(segments.lengths)), strict=True
        ):
            scores = torch.einsum("ihd,jhd->hij", q_part.float(), k_part.float()) * self.head_dim**-0.5
            if self.causal:
                scores = scores.masked_fill(
                    torch.ones_like(scores[0], dtype=torch.bool).triu(1), float("-inf")
                )
            found.append(scores.softmax(-1))
        return found

    def _queries_and_keys(self, x: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor]:
        q, k = (p(x).unflatten(-1, (-1, self.head_dim)) for p in (self.q_proj, self.k_proj))
        return self._placed(q, k, rotation)

    def _placed(self, q: Tensor, k: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor]:
        """Queries and keys, normalised and rotated."""
        if self.q_norm is not None:
            q = self.q_norm(q)
        if self.k_norm is not None:
            k = self.k_norm(k)
        return (q, k) if rotation is None else (rotate(q, rotation), rotate(k, rotation))

    def new_cache(
        self, cache: KVCache, rows: int, capacity: int, dtype: torch.dtype, device: torch.device | str
    ) -> LayerCache:
        """Room for keys and values of `capacity` tokens per row."""
        return LayerCache(cache, (rows, capacity, self.kv_heads, self.head_dim), dtype, device)

    def _mix(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        segments: Segments,
        cache: LayerCache | None,
        gate: Tensor | None = None,
    ) -> Tensor:
        """q [n, h, d], k and v [n, g, d], a factor of the result [n, h, d] -> [n, w]."""
        dropout = self.dropout if self.training else 0.0
        if cache is None and is_one_kernel(q, dropout):
            return self._project(segment_attention(q, k, v, segments, self.causal), gate)
        return self._attend(q, k, v, segments, cache, dropout, gate)

    def _project(self, out: Tensor, gate: Tensor | None) -> Tensor:
        return self.output_proj((out if gate is None else out * gate).flatten(1))

    # Not compiled: the number of kernels differs from batch to batch. The projection is here too, because its
    # input is a view of attention's result, and the compiler would guard that one's shape.
    @torch.compiler.disable
    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        segments: Segments,
        cache: LayerCache | None,
        dropout: float,
        gate: Tensor | None,
    ) -> Tensor:
        if cache is not None and not cache.cache.prefilling:
            out = cache.attend(q, k, v)
        else:
            if cache is not None:
                cache.store_prompt(k, v)
            out = segment_attention(q, k, v, segments, self.causal, dropout)
        return self._project(out, gate)


class TransformerLayer(TransformerSelfAttentionLayer):
    """Pre-norm layer on flat tokens.

    A subclass of torchtune's layer, because activation checkpointing, compiling and sharding look for this
    type. `sa_scale` and `mlp_scale` act on what attention and MLP add to x (a second norm in some families).
    """

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        *,
        rotation: Rotation | None,
        segments: Segments,
        cache: LayerCache | None = None,
        routers: RouterStatistics | None = None,
    ) -> Tensor:
        """x [n, w] -> [n, w]; a mixture of experts records what its router does in `routers`, if given."""
        attended = self.attn(self.sa_norm(x), rotation=rotation, segments=segments, cache=cache)
        x = x + self.sa_scale(attended)
        normalised = self.mlp_norm(x)
        if isinstance(self.mlp, SparseMoE):
            return x + self.mlp_scale(self.mlp(normalised, routers))
        return x + self.mlp_scale(self.mlp(normalised))
