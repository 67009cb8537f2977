"""What a delta net keeps of each row while text is generated: its state and the convolution's last inputs.

Unlike keys and values this does not grow. Prompts are right-padded; padding changes no state.

b rows, s tokens of the longest prompt, c channels, k taps, h heads, d and e widths of keys and values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from torchtune_qwenvl.modules.kv_cache import KVCache


class DeltaCache:
    """State of one layer.

    Args:
        cache: of the whole model.
        window: shape [b, k - 1, c] of the convolution's last inputs.
        state: shape [b, h, d, e].
        dtype: of the window; the state is in fp32, or fp64 if this is.
        device: of both.
    """

    def __init__(
        self,
        cache: KVCache,
        window: tuple[int, ...],
        state: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        self.cache = cache
        self.window = torch.zeros(window, dtype=dtype, device=device)
        wide = dtype if dtype == torch.float64 else torch.float32
        self.state = torch.zeros(state, dtype=wide, device=device)

    def real_tokens(self, n: int) -> Tensor:
        """Bool [n, 1] for the n = b * s tokens of the padded prompts: false for padding."""
        lengths = self.cache.lengths
        places = torch.arange(n // len(lengths), device=lengths.device)
        return (places < lengths[:, None]).reshape(n, 1)

    def store_window(self, x: Tensor) -> None:
        """Keep the last inputs [b * s, c] of each prompt; before its first token they are 0."""
        b, taps, channels = self.window.shape
        places = self.cache.lengths[:, None] + torch.arange(-taps, 0, device=x.device)  # [b, k - 1]
        index = places.clamp(min=0)[..., None].expand(-1, -1, channels)
        found = x.unflatten(0, (b, -1)).gather(1, index)
        self.window.copy_(found.masked_fill(places[..., None] < 0, 0))
