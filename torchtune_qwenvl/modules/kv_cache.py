"""Cache for generation: first the prompts, of different lengths, then one token at a time.

Each layer's mixer makes its own part: keys and values for attention, a state for a delta net.

The prompts of b rows are right-padded to s tokens. Each row appends at its own end, over the padding:

    row 0:  P P P P P t t .        P prompt, t generated, . free, # padding that is not overwritten yet
    row 1:  P P t t # . . .          (never seen: the mask ends at each row's own length)

b rows, c capacity, g key/value heads, h query heads, d head width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class CachingMixer(Protocol):
    """A token mixer that can generate."""

    def new_cache(
        self, cache: KVCache, rows: int, capacity: int, dtype: torch.dtype, device: torch.device | str
    ) -> Any:
        """Its part of `cache`: rows, tokens per row at most, dtype and device."""


class KVCache:
    """What every layer keeps of the tokens so far.

    Args:
        prompt_lengths: tokens of each row's prompt, without padding.
        capacity: how many tokens a row can hold, padded prompt included.
        mixers: the layers' token mixers, each of which makes its part of the cache.
        dtype: dtype of keys and values.
        device: of everything.
    """

    def __init__(
        self,
        prompt_lengths: Sequence[int],
        capacity: int,
        *,
        mixers: Iterable[CachingMixer],
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        rows = len(prompt_lengths)
        self.layers = [mixer.new_cache(self, rows, capacity, dtype, device) for mixer in mixers]
        self.lengths = torch.tensor(list(prompt_lengths), device=device)  # [b] tokens in each row
        self.used = (
            0  # upper bound of the rows' lengths, known without asking the device; 0 before the prompt
        )
        self.capacity = capacity
        self.mask: Tensor | None = None  # bool [b, 1, 1, used], what a new token sees; None for the prompt
        self._start = 0  # `used` before the tokens that are being computed

    @property
    def empty(self) -> bool:
        """Whether the prompt has not come yet."""
        return self.used == 0

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` per row; called before the layers run.

        Raises:
            ValueError: no room, or more than one token per row after the prompt.
        """
        if self.empty or tokens == 1:
            self._start, self.used = self.used, self.used + tokens
        else:
            raise ValueError(f"after the prompt a row takes one token at a time, got {tokens}")
        if self.used > self.capacity:
            raise ValueError(f"the cache holds {self.capacity} tokens per row, {self.used} are needed")
        if self._start:
            held = torch.arange(self.used, device=self.lengths.device)
            self.mask = (held <= self.lengths[:, None])[:, None, None]  # [b, 1, 1, used]

    def advance(self) -> None:
        """Count the new tokens; called after the layers ran."""
        if self._start:
            self.lengths = self.lengths + 1

    @property
    def prefilling(self) -> bool:
        """Whether the tokens being computed are the prompt."""
        return self._start == 0


class LayerCache:
    """Keys and values [b, c, g, d] of one layer."""

    def __init__(self, cache: KVCache, shape: tuple[int, ...], dtype: torch.dtype, device) -> None:
        self.cache = cache
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)

    def store_prompt(self, k: Tensor, v: Tensor) -> None:
        """Keep keys and values [b * s, g, d] of the padded prompt."""
        b = self.keys.shape[0]
        s = k.shape[0] // b
        self.keys[:, :s] = k.unflatten(0, (b, s))
        self.values[:, :s] = v.unflatten(0, (b, s))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append one token per row (k, v [b, g, d]); the queries [b, h, d] attend to the row: [b, h, d].

        The h / g query heads of a key head take the place of the query sequence, so keys are not expanded.
        """
        rows, used = torch.arange(q.shape[0], device=q.device), self.cache.used
        self.keys[rows, self.cache.lengths] = k.to(self.keys.dtype)
        self.values[rows, self.cache.lengths] = v.to(self.values.dtype)
        keys, values = (x[:, :used].transpose(1, 2) for x in (self.keys, self.values))
        grouped = q.unflatten(1, (k.shape[1], -1))
        return F.scaled_dot_product_attention(grouped, keys, values, attn_mask=self.cache.mask).flatten(1, 2)
