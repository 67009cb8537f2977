"""Convert any Pillow mode or array to 8-bit RGB: alpha on white, deep images to 8 bits, palettes and CMYK."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from torchtune_qwenvl.transforms.errors import BadSample

# Bits per channel that images are recorded with.
_DEPTHS = (8, 10, 12, 14, 16)
_BAND_PIXELS = 1 << 20


def rgb_tensor(image: Image.Image) -> torch.Tensor:
    """A Pillow image of any mode as uint8 [3, h, w] with channels-last strides.

    It is converted in bands of rows, so that a large image is not in memory several times.

    Raises:
        BadSample: pixel values without a fixed range (mode F, or mode I with negative values or more than 16
            bits).
    """
    width, height = image.size
    shift = _bits_too_many(image)
    pixels = np.empty((height, width, 3), np.uint8)
    rows = max(1, _BAND_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        pixels[top:bottom] = np.asarray(_to_rgb(image.crop((0, top, width, bottom)), shift))
    return hwc_to_chw(pixels)


def _to_rgb(band: Image.Image, shift: int) -> Image.Image:
    if band.mode.startswith("I"):
        band = Image.fromarray((np.asarray(band).astype(np.int64) >> shift).astype(np.uint8))
    if band.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in band.info:
        rgba = band.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", band.size, "white"), rgba).convert("RGB")
    return band.convert("RGB")


def _bits_too_many(image: Image.Image) -> int:
    """How far the values of a deep image are to be shifted, so that 8 bits are left."""
    if not image.mode.startswith(("I", "F")):
        return 0
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
        raise BadSample(
            f"pixel values of mode {image.mode!r} from {values.min()} to {values.max()} have no fixed range",
            fix="save the image with 8 or 16 bits per channel",
        )
    return surplus_bits(int(values.max()))


def surplus_bits(largest: int) -> int:
    """Bits beyond 8 of the depth that a deep image was recorded with.

    Files of 16 or 32 bits often hold fewer: cameras and scanners record 10, 12 or 14, and masks 8. The depth
    is the smallest of these that the image's largest value fits into.

    Example:
        >>> surplus_bits(255), surplus_bits(4095), surplus_bits(65535)
        (0, 4, 8)
    """
    return next(bits for bits in _DEPTHS if largest < 1 << bits) - 8


def array_to_rgb(values: np.ndarray) -> torch.Tensor:
    """uint8 or uint16 [h, w, 1 | 3 | 4] to uint8 [3, h, w]."""
    if values.dtype == np.uint16:
        shift, shallow = surplus_bits(int(values.max())), np.empty(values.shape, np.uint8)
        rows = max(1, _BAND_PIXELS // values.shape[1])
        for top in range(0, len(values), rows):  # not the whole image twice at 16 bits
            shallow[top : top + rows] = values[top : top + rows] >> shift
        values = shallow
    image = Image.fromarray(values[:, :, 0] if values.shape[2] == 1 else np.ascontiguousarray(values))
    return rgb_tensor(image)


def hwc_to_chw(values: np.ndarray) -> torch.Tensor:
    """[h, w, c] to a tensor [c, h, w] with channels-last strides."""
    writable = values if values.flags.writeable else values.copy()
    return torch.from_numpy(writable).permute(2, 0, 1)
