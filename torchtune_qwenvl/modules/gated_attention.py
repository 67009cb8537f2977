"""Attention whose result is gated by a sigmoid, head by head and value by value.

Source: arXiv:2505.06708, section 3: a gate after attention, before the output projection.
"""

from __future__ import annotations

from torch import Tensor

from torchtune_qwenvl.modules.attention import Segments
from torchtune_qwenvl.modules.kv_cache import LayerCache
from torchtune_qwenvl.modules.layers import Attention
from torchtune_qwenvl.modules.rope import Rotation


class GatedAttention(Attention):
    """`Attention` with a `q_proj` twice as wide: of each head the query, then its gate."""

    def forward(
        self, x: Tensor, *, rotation: Rotation | None, segments: Segments, cache: LayerCache | None = None
    ) -> Tensor:
        """x [n, w] -> [n, w]. With a cache, n = b * s in the prompt and n = b afterwards."""
        q, gate = self.q_proj(x).unflatten(-1, (-1, 2 * self.head_dim)).chunk(2, dim=-1)
        k, v = (p(x).unflatten(-1, (-1, self.head_dim)) for p in (self.k_proj, self.v_proj))
        return self._mix(*self._placed(q, k, rotation), v, segments, cache, gate.sigmoid())
