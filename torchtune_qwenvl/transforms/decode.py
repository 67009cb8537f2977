"""Image files and objects to uint8 RGB, with the size known before anything is decoded.

The rules: EXIF orientation applied, alpha composited on white, 16-bit scaled to 8, palettes and CMYK converted,
the first frame of an animation. JPEG goes through torchvision, whose channels-last result is kept: the
bit-equal resize is several times faster on it; everything else goes through Pillow.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torchvision.io import ImageReadMode, decode_jpeg

from torchtune_qwenvl.transforms.errors import BadSample

# Pillow's own warning threshold: beyond it, it takes a file for a decompression bomb.
MAX_IMAGE_PIXELS = 89_478_485
_ORIENTATION = 0x0112  # EXIF tag
_FIX = "repair or remove the file, or set on_bad_sample: skip"

ImageSource = str | Path | bytes | Image.Image | np.ndarray | torch.Tensor


@dataclass(frozen=True)
class OpenedImage:
    """An image whose header is read. `where` names it in errors; `decode()` gives uint8 [3, height, width]."""

    where: str
    height: int
    width: int
    _decode: Callable[[], torch.Tensor]

    def decode(self) -> torch.Tensor:
        """uint8 RGB [3, height, width], channels-last strides.

        Raises:
            BadSample: the file is truncated or damaged, or not of the size its header says.
        """
        try:
            pixels = self._decode()
        except (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError) as error:
            if isinstance(error, BadSample):
                raise
            raise BadSample(f"cannot be decoded: {error}", where=self.where, fix=_FIX) from error
        if pixels.shape != (3, self.height, self.width):
            raise BadSample(
                f"its header says {self.height} x {self.width}, decoding gave {tuple(pixels.shape)}",
                where=self.where,
                fix=_FIX,
            )
        return pixels


def open_image(
    source: ImageSource, *, max_image_pixels: int = MAX_IMAGE_PIXELS, where: str | None = None
) -> OpenedImage:
    """Read the header of `source`.

    Args:
        source: path, encoded bytes, PIL image, array [h, w] or [h, w, 1 | 3 | 4], tensor [1 | 3 | 4, h, w].
            Arrays and tensors are uint8 or uint16.
        max_image_pixels: an image of more pixels is refused before it is decoded.
        where: words for errors; default the path.

    Raises:
        BadSample: a missing, empty or non-image file, too many pixels, another type or shape.
    """
    where = where or (
        str(source) if isinstance(source, str | Path) else f"image given as {type(source).__name__}"
    )
    if isinstance(source, np.ndarray | torch.Tensor):
        opened = _open_array(source, where)
    elif isinstance(source, str | Path | bytes | Image.Image):
        opened = _open_encoded(source, where)
    else:
        raise BadSample(
            "an image is a path, bytes, PIL image, numpy array or tensor", where=where, fix="convert it"
        )
    if opened.height * opened.width > max_image_pixels:
        raise BadSample(
            f"{opened.height} x {opened.width} pixels, more than max_image_pixels = {max_image_pixels}",
            where=where,
            fix="shrink the file, or raise max_image_pixels if you trust it",
        )
    return opened


def decode_image(source: ImageSource, *, max_image_pixels: int = MAX_IMAGE_PIXELS) -> torch.Tensor:
    """`source` as uint8 RGB [3, h, w]; see `open_image` for arguments and errors."""
    return open_image(source, max_image_pixels=max_image_pixels).decode()


def image_size(source: ImageSource, *, max_image_pixels: int = MAX_IMAGE_PIXELS) -> tuple[int, int]:
    """(height, width) as it will be decoded, from the header alone; see `open_image`."""
    opened = open_image(source, max_image_pixels=max_image_pixels)
    return opened.height, opened.width


def _open_encoded(source: str | Path | bytes | Image.Image, where: str) -> OpenedImage:
    image = source if isinstance(source, Image.Image) else _open_pillow(source, where)
    orientation = image.getexif().get(_ORIENTATION, 1)
    width, height = image.size
    if orientation in (5, 6, 7, 8):
        height, width = width, height
    if not isinstance(source, Image.Image) and image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB"):
        return OpenedImage(where, height, width, lambda: _decode_jpeg(source, image, orientation))
    return OpenedImage(where, height, width, lambda: _decode_pillow(image, orientation))


def _open_pillow(source: str | Path | bytes, where: str) -> Image.Image:
    try:
        if isinstance(source, bytes):
            if not source:
                raise BadSample("the image has 0 bytes", where=where, fix=_FIX)
            return Image.open(io.BytesIO(source))
        if Path(source).is_file() and Path(source).stat().st_size == 0:
            raise BadSample("the file has 0 bytes", where=where, fix=_FIX)
        return Image.open(source)
    except FileNotFoundError:
        raise BadSample("no such image file", where=where, fix="check the path and image_root") from None
    except UnidentifiedImageError:
        raise BadSample("not an image that Pillow knows", where=where, fix=_FIX) from None
    except Image.DecompressionBombError as error:
        raise BadSample(str(error), where=where, fix="shrink the file") from None
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, BadSample):
            raise
        raise BadSample(f"cannot be opened: {error}", where=where, fix=_FIX) from error


def _decode_jpeg(source: str | Path | bytes, image: Image.Image, orientation: int) -> torch.Tensor:
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    try:
        pixels = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
    except (
        RuntimeError
    ):  # rare codings torchvision lacks; for a damaged file Pillow's message is the better one
        return _decode_pillow(image, orientation)
    return _ORIENT[orientation](pixels) if orientation in _ORIENT else pixels


# EXIF orientation -> what turns the stored picture [c, h, w] upright. 1 is upright already.
_ORIENT: dict[int, Callable[[torch.Tensor], torch.Tensor]] = {
    2: lambda x: x.flip(2),
    3: lambda x: x.flip(1, 2),
    4: lambda x: x.flip(1),
    5: lambda x: x.transpose(1, 2),
    6: lambda x: x.transpose(1, 2).flip(2),
    7: lambda x: x.transpose(1, 2).flip(1, 2),
    8: lambda x: x.transpose(1, 2).flip(1),
}


def _decode_pillow(image: Image.Image, orientation: int) -> torch.Tensor:
    upright = image if orientation == 1 else ImageOps.exif_transpose(image)
    return _channels_first(np.array(_to_rgb(upright)))


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
    # The high byte, as Pillow takes it where it reads 16-bit colour: grey and colour files agree.
    return (values.astype(np.int64) >> 8).astype(np.uint8)


def _open_array(source: np.ndarray | torch.Tensor, where: str) -> OpenedImage:
    values = (
        source.cpu().permute(1, 2, 0).numpy()
        if isinstance(source, torch.Tensor) and source.ndim == 3
        else source
    )
    values = values.cpu().numpy() if isinstance(values, torch.Tensor) else values
    if values.ndim == 2:
        values = values[:, :, None]
    if (
        values.ndim != 3
        or values.shape[2] not in (1, 3, 4)
        or values.dtype not in (np.uint8, np.uint16)
        or 0 in values.shape
    ):
        layout = "[1 | 3 | 4, h, w]" if isinstance(source, torch.Tensor) else "[h, w, 1 | 3 | 4]"
        raise BadSample(
            f"expected uint8 or uint16 {layout}, got {source.dtype} {list(source.shape)}",
            where=where,
            fix="convert it; floats have no fixed range",
        )
    height, width, channels = values.shape
    if values.dtype == np.uint8 and channels == 3:
        pixels = source if isinstance(source, torch.Tensor) else _channels_first(source)
        return OpenedImage(where, height, width, lambda: pixels.cpu())
    return OpenedImage(where, height, width, lambda: _decode_array(values))


def _decode_array(values: np.ndarray) -> torch.Tensor:
    values = _scale_16_bit(values) if values.dtype == np.uint16 else values
    image = Image.fromarray(values[:, :, 0] if values.shape[2] == 1 else np.ascontiguousarray(values))
    return _channels_first(np.array(_to_rgb(image)))


def _channels_first(values: np.ndarray) -> torch.Tensor:
    writable = values if values.flags.writeable else values.copy()
    return torch.from_numpy(writable).permute(2, 0, 1)
