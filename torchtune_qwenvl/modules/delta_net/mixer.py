"""Gated delta net: what takes the place of attention in most layers of some decoders.

    x ─┬─ conv: q_proj, k_proj, v_proj, convolution, SiLU ─> gated delta rule ─> gate: norm, output_proj ─>
       ├─ decay_proj ──> how much of the state stays ───────────────┤                ^
       ├─ beta_proj ───> how much of an update is applied ──────────┘                │
       └─ gate.q_proj ───────────────────────────────────────────────────── SiLU ────┘

It has no positions: its state and its convolution know what came before. Both start anew at each segment.

n tokens, w model width, m key heads of width d, h value heads of width e. Source: arXiv:2412.06464.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchtune_qwenvl.modules.attention import Segments
from torchtune_qwenvl.modules.delta_net.backends import gated_delta_rule
from torchtune_qwenvl.modules.delta_net.cache import DeltaCache
from torchtune_qwenvl.modules.delta_net.convolution import ConvolvedProjections
from torchtune_qwenvl.modules.delta_net.gate import GatedOutput
from torchtune_qwenvl.modules.delta_net.plan import chunk_plan
from torchtune_qwenvl.modules.delta_net.rule import delta_rule_step, delta_rule_with_states
from torchtune_qwenvl.modules.kv_cache import KVCache
from torchtune_qwenvl.modules.norm import at_least_fp32
from torchtune_qwenvl.modules.rope import Rotation


class GatedDeltaNet(nn.Module):
    """A token mixer with the call of `Attention`.

    Args:
        conv: w -> queries and keys m * d, values h * e.
        decay_proj: w -> h.
        beta_proj: w -> h.
        gate: w -> h * e, and the result h * e -> w.
        keys: m and d.
        values: h and e.
    """

    def __init__(
        self,
        *,
        conv: ConvolvedProjections,
        decay_proj: nn.Module,
        beta_proj: nn.Module,
        gate: GatedOutput,
        keys: tuple[int, int],
        values: tuple[int, int],
    ) -> None:
        super().__init__()
        self.conv, self.decay_proj, self.beta_proj, self.gate = conv, decay_proj, beta_proj, gate
        self.keys, self.values = keys, values
        self.A_log = nn.Parameter(torch.empty(values[0]))
        self.dt_bias = nn.Parameter(torch.ones(values[0]))
        with torch.no_grad():
            self.A_log.uniform_(0.01, 16).log_()

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """h, d, e: the state of one row."""
        return self.values[0], self.keys[1], self.values[1]

    def forward(
        self,
        x: Tensor,
        *,
        rotation: Rotation | None,
        segments: Segments,
        cache: DeltaCache | None = None,
    ) -> Tensor:
        """x [n, w] -> [n, w]; `rotation` is not used. With a cache, n = b * s in the prompt, then n = b."""
        beta = at_least_fp32(self.beta_proj(x)).sigmoid()
        speed = F.softplus(at_least_fp32(self.decay_proj(x)) + at_least_fp32(self.dt_bias))
        decay = -at_least_fp32(self.A_log).exp() * speed
        return self._mix(self.conv(x), decay, beta, self.gate.q_proj(x), segments, cache)

    def new_cache(
        self, cache: KVCache, rows: int, capacity: int, dtype: torch.dtype, device: torch.device | str
    ) -> DeltaCache:
        """An empty state for generation; its size does not depend on `capacity`."""
        window = (rows, self.conv.taps - 1, sum(self.conv.widths))
        return DeltaCache(cache, window, (rows, *self.state_shape), dtype, device)

    # Not compiled: the number and the lengths of segments differ from batch to batch.
    @torch.compiler.disable
    def _mix(
        self,
        qkv: Sequence[Tensor],
        decay: Tensor,
        beta: Tensor,
        gate: Tensor,
        segments: Segments,
        cache: DeltaCache | None,
    ) -> Tensor:
        """q and k [n, m * d], v and gate [n, h * e], decay and beta [n, h] -> [n, w]."""
        if cache is not None and not cache.cache.prefilling:
            q, k, v = self._by_head(self.conv.step(qkv, cache.window))
            return self.gate(delta_rule_step(q, k, v, decay, beta, cache.state), gate)
        plan = chunk_plan(segments, self.conv.taps)
        q, k, v = self._by_head(self.conv.over_segments(qkv, plan))
        if cache is None:
            return self.gate(gated_delta_rule(q, k, v, decay, beta, segments, plan), gate)
        cache.store_window(torch.cat(list(qkv), -1))
        real = cache.real_tokens(len(v))  # padding must neither decay nor change the state
        out, states = delta_rule_with_states(q, k, v, decay * real, beta * real, plan)
        cache.state.copy_(states)
        return self.gate(out, gate)

    def _by_head(self, qkv: Sequence[Tensor]) -> list[Tensor]:
        """q, k [n, m, d] and v [n, h, e]."""
        return [
            x.unflatten(-1, heads) for x, heads in zip(qkv, (self.keys, self.keys, self.values), strict=True)
        ]
