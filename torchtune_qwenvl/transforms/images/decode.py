"""Decode image files and objects to uint8 RGB. The size is known before anything is decoded.

EXIF orientation is applied, alpha is composited on white, deep images are scaled to 8 bits, palettes and CMYK
are converted, and of an animation the first frame is taken. torchvision decodes JPEG: its result is
channels-last, which makes the later resize several times faster, with the same bits. Pillow decodes
everything else.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torchvision.io import ImageReadMode, decode_jpeg, decode_png

from torchtune_qwenvl.transforms.errors import BadSample
from torchtune_qwenvl.transforms.images.formats import FORMATS, check_cost, check_size, opened_picture
from torchtune_qwenvl.transforms.images.rgb import array_to_rgb, hwc_to_chw, rgb_tensor
from torchtune_qwenvl.transforms.time_limit import within

# Pillow's threshold, above which it warns of a decompression bomb.
MAX_IMAGE_PIXELS = 89_478_485
# Seconds that opening or decoding one image may take. The largest one takes about two.
TIME_LIMIT = 15.0
_ORIENTATION = 0x0112  # EXIF tag
# The errors that Pillow and torchvision raise for damaged files.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    RuntimeError,
    EOFError,
    MemoryError,  # a header that promises more than there is room for
    struct.error,
    Image.DecompressionBombError,
)
_FIX = "repair or remove the file"

ImageSource = str | Path | bytes | Image.Image | np.ndarray | torch.Tensor


@dataclass(frozen=True)
class OpenedImage:
    """An image whose header has been read; `where` names it in errors."""

    where: str
    height: int
    width: int
    _decode: Callable[[], torch.Tensor]

    def decode(self) -> torch.Tensor:
        """uint8 RGB [3, height, width], channels-last strides.

        Raises:
            BadSample: the file is truncated or damaged, or its size differs from its header.
        """
        try:
            pixels = within(TIME_LIMIT, self._decode)
        except _DAMAGE as error:
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
        max_image_pixels: an image with more pixels is refused before it is decoded.
        where: location for errors, put before the path.

    Raises:
        BadSample: the file is missing, empty or no image, has too many pixels, or the type or shape is wrong.
    """
    name = str(source) if isinstance(source, str | Path) else f"image given as {type(source).__name__}"
    where = f"{where}, {name}" if where else name
    if isinstance(source, np.ndarray | torch.Tensor):
        return _open_array(source, where, max_image_pixels)
    if isinstance(source, str | Path | bytes | Image.Image):
        return _open_encoded(source, where, max_image_pixels)
    raise BadSample(
        f"expected a path, bytes, PIL image, numpy array or tensor, got {type(source).__name__}", where=where
    )


def decode_image(source: ImageSource, *, max_image_pixels: int = MAX_IMAGE_PIXELS) -> torch.Tensor:
    """`source` as uint8 RGB [3, h, w]; see `open_image` for arguments and errors."""
    return open_image(source, max_image_pixels=max_image_pixels).decode()


def image_size(source: ImageSource, *, max_image_pixels: int = MAX_IMAGE_PIXELS) -> tuple[int, int]:
    """(height, width) after decoding, read from the header alone; see `open_image`."""
    opened = open_image(source, max_image_pixels=max_image_pixels)
    return opened.height, opened.width


def _open_encoded(source: str | Path | bytes | Image.Image, where: str, max_image_pixels: int) -> OpenedImage:
    try:
        header = within(TIME_LIMIT, lambda: _read_header(source, max_image_pixels, where))
    except FileNotFoundError:
        raise BadSample("no such image file", where=where, fix="check the path") from None
    except UnidentifiedImageError:
        size = len(source) if isinstance(source, bytes) else Path(source).stat().st_size  # type: ignore[arg-type]
        what = (
            f"not an image of a format that is read ({', '.join(FORMATS)})"
            if size
            else "0 bytes, expected an image"
        )
        raise BadSample(what, where=where, fix=_FIX) from None
    except _DAMAGE as error:
        if isinstance(error, BadSample):
            raise
        raise BadSample(f"cannot be opened: {error}", where=where, fix=_FIX) from error
    decode = _decode_pillow if isinstance(source, Image.Image) else header.decode
    return OpenedImage(where, header.height, header.width, lambda: decode(source, header.orientation))


@dataclass(frozen=True)
class _Header:
    """What the header says: size after rotation, EXIF orientation, and what decodes the rest."""

    height: int
    width: int
    orientation: int
    decode: Callable[[Any, int], torch.Tensor]


def _read_header(source: str | Path | bytes | Image.Image, max_image_pixels: int, where: str) -> _Header:
    with opened_picture(source) as image:
        deep = image.format == "PNG" and _raw_mode(image) in ("RGB;16B", "RGBA;16B")
        check_cost(image, max_image_pixels, "max_image_pixels", where, deep=deep)
        orientation = _orientation(image)
        width, height = image.size
        decode: Callable[[Any, int], torch.Tensor] = _decode_deep_png if deep else _decode_pillow
        if image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB"):
            decode = _decode_jpeg
    return _Header(
        *((width, height) if orientation in (5, 6, 7, 8) else (height, width)), orientation, decode
    )


def _raw_mode(image: Image.Image) -> Any:
    """How the file stores pixels: Pillow keeps only 8 bits of deep colours, and says so here alone."""
    tiles = getattr(image, "tile", None)
    return tiles[0][3] if tiles else None


def _orientation(image: Image.Image) -> int:
    if image.format == "TIFF":  # Pillow rotates these itself and reports the rotated size
        return 1
    # Pillow's own method for PNG decodes the whole image to look for EXIF data after it.
    exif = Image.Image.getexif(image)
    if image.format == "PNG" and "exif" not in image.info and (stream := getattr(image, "fp", None)):
        late = _late_png_exif(stream)
        if late:
            exif.load(late)
    return exif.get(_ORIENTATION, 1)


def _late_png_exif(stream: Any) -> bytes:
    """The content of the eXIf chunk, which may be anywhere in a PNG; keeps the stream's position."""
    came_from = stream.tell()
    stream.seek(8)  # after the signature
    found = b""
    while len(head := stream.read(8)) == 8 and not found:
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        found = stream.read(length) if kind == b"eXIf" else b""
        stream.seek(4 if found else length + 4, io.SEEK_CUR)
    stream.seek(came_from)
    return found


def _decode_jpeg(source: str | Path | bytes, orientation: int) -> torch.Tensor:
    try:
        pixels = decode_jpeg(_encoded(source), mode=ImageReadMode.RGB)
    except RuntimeError:  # a rare encoding, or a damaged file, for which Pillow has the better message
        return _decode_pillow(source, orientation)
    return _ORIENT[orientation](pixels) if orientation in _ORIENT else pixels


def _decode_deep_png(source: str | Path | bytes, orientation: int) -> torch.Tensor:
    """16 bits per channel in colour, of which Pillow would keep the upper 8 alone."""
    values = decode_png(_encoded(source), mode=ImageReadMode.UNCHANGED)
    pixels = array_to_rgb(values.permute(1, 2, 0).numpy())
    return _ORIENT[orientation](pixels) if orientation in _ORIENT else pixels


def _encoded(source: str | Path | bytes) -> torch.Tensor:
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


# EXIF orientation -> what rotates the stored image [c, h, w] upright. 1 is upright already.
_ORIENT: dict[int, Callable[[torch.Tensor], torch.Tensor]] = {
    2: lambda x: x.flip(2),
    3: lambda x: x.flip(1, 2),
    4: lambda x: x.flip(1),
    5: lambda x: x.transpose(1, 2),
    6: lambda x: x.transpose(1, 2).flip(2),
    7: lambda x: x.transpose(1, 2).flip(1, 2),
    8: lambda x: x.transpose(1, 2).flip(1),
}


def _decode_pillow(source: str | Path | bytes | Image.Image, orientation: int) -> torch.Tensor:
    with opened_picture(source) as image:
        return rgb_tensor(image if orientation == 1 else ImageOps.exif_transpose(image))


def _open_array(source: np.ndarray | torch.Tensor, where: str, max_image_pixels: int) -> OpenedImage:
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
    check_size(width, height, max_image_pixels, "max_image_pixels", where)
    if values.dtype == np.uint8 and channels == 3:
        pixels = source if isinstance(source, torch.Tensor) else hwc_to_chw(source)
        return OpenedImage(where, height, width, lambda: pixels.cpu())
    return OpenedImage(where, height, width, lambda: array_to_rgb(values))
