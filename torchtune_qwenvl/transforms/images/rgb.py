"""Convert any Pillow mode or array to 8-bit RGB: alpha on white, 16 bits to 8, palettes and CMYK."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from torchtune_qwenvl.transforms.errors import BadSample


def rgb_tensor(image: Image.Image) -> torch.Tensor:
    """A Pillow image of any mode as uint8 [3, h, w] with channels-last strides.

    Raises:
        BadSample: pixel values without a fixed range (mode F, or mode I with more than 16 bits).
    """
    return hwc_to_chw(np.array(_to_rgb(image)))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        image = _to_8_bit(image)
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
        raise BadSample(
            f"pixel values of mode {image.mode!r} from {values.min()} to {values.max()} have no fixed range",
            fix="save the image with 8 or 16 bits per channel",
        )
    return Image.fromarray(_scale_16_bit(values))


def _scale_16_bit(values: Any) -> Any:
    # The high byte, as Pillow does for 16-bit colour, so that grey and colour files agree.
    return (values.astype(np.int64) >> 8).astype(np.uint8)


def array_to_rgb(values: np.ndarray) -> torch.Tensor:
    """uint8 or uint16 [h, w, 1 | 3 | 4] to uint8 [3, h, w]."""
    values = _scale_16_bit(values) if values.dtype == np.uint16 else values
    image = Image.fromarray(values[:, :, 0] if values.shape[2] == 1 else np.ascontiguousarray(values))
    return rgb_tensor(image)


def hwc_to_chw(values: np.ndarray) -> torch.Tensor:
    """[h, w, c] to a tensor [c, h, w] with channels-last strides."""
    writable = values if values.flags.writeable else values.copy()
    return torch.from_numpy(writable).permute(2, 0, 1)
