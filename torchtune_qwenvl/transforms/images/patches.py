"""Cut resized images into patches of bytes, and normalise them in the reference's order of operations.

Axes: n patches, c channels, T frames per patch, p patch side, m merge side.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

# Patches normalised at a time: few enough to stay in the cache, without a second buffer of the image's size.
_CHUNK = 256
_DTYPES = {
    "uint8": torch.uint8,
    "fp32": torch.float32,
    "float32": torch.float32,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
}


def pixel_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """The dtype of patches, which may be given by name (`uint8`, `fp32`, `bf16` …); ValueError if unknown."""
    found = _DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found is None or found not in _DTYPES.values():
        raise ValueError(f"expected the dtype of patches to be one of {', '.join(_DTYPES)}, got {dtype!r}")
    return found


def cut_patches(pixels: torch.Tensor, patch_size: int, merge_size: int) -> torch.Tensor:
    """Cut uint8 [c, h, w] with sides that are multiples of p·m into uint8 [n, c, p·p], block by block.

    Patch order of 2 x 4 patches with m = 2:    0 1 4 5
                                                2 3 6 7
    """
    p, m = patch_size, merge_size
    channels, height, width = pixels.shape
    # numpy: one pass over the bytes, without a thread pool for which worker processes would compete
    picture = pixels.permute(1, 2, 0).numpy()
    blocks = picture.reshape(height // (p * m), m, p, width // (p * m), m, p, channels)
    ordered = np.ascontiguousarray(blocks.transpose(0, 3, 1, 4, 6, 2, 5))
    return torch.from_numpy(ordered.reshape(-1, channels, p * p))


class Normalise:
    """Normalise uint8 patches of a frame to `(x - 255 mean) / (255 std)` in fp32.

    Args:
        mean, std: per channel, for pixels in [0, 1].
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        # The reference's fp32 operations in its order; another order would change the last bit.
        self._mean = (torch.tensor(mean) * 255.0)[:, None]
        self._std = (torch.tensor(std) * 255.0)[:, None]

    def __call__(self, raw: torch.Tensor, out: torch.Tensor, frames: slice) -> None:
        """Write uint8 `raw` [n, c, p·p] into the given frames of `out` [n, c, T, p·p]."""
        for target, some in zip(out.split(_CHUNK), raw.split(_CHUNK), strict=True):
            values = torch.sub(some, self._mean).div_(self._std)
            target[:, :, frames] = values[:, :, None]
