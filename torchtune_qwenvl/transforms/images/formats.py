"""Which image formats are read, and what decoding one of them may cost.

Pillow recognises a file by its content, whatever its name says, and some of its readers start other programs
(Ghostscript for EPS). So only formats from a list are opened. A small file can also hold a huge image, so the
memory that decoding needs is estimated from the header and compared with a budget.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from torchtune_qwenvl.transforms.errors import BadSample

FORMATS = (
    *("JPEG", "MPO", "PNG", "WEBP", "GIF", "TIFF", "BMP", "DIB", "PPM", "JPEG2000", "AVIF", "HEIF"),
    *("ICO", "ICNS", "TGA", "PCX", "DDS", "SGI"),
)
# Peak bytes per pixel of opening, decoding and converting, measured at 3000 x 3000 pixels and rounded up.
_PEAK_BYTES = {"AVIF": 13, "WEBP": 21, "JPEG2000": 21}
_PEAK_BYTES |= dict.fromkeys(("JPEG", "MPO", "PNG", "GIF", "TIFF", "BMP", "DIB", "PPM", "TGA"), 10)
_PEAK_BYTES_OF_OTHERS = 21
# The budget for each pixel of `max_image_pixels`: what the common formats need.
BUDGET_BYTES = 10


@contextmanager
def opened_picture(source: str | Path | bytes | Image.Image) -> Iterator[Image.Image]:
    """A Pillow image whose header has been read; an image of Pillow's is given as it is.

    Raises:
        BadSample: an image of Pillow's that was opened from a format that is not read.
        PIL.UnidentifiedImageError: a file of another format, or no image.
    """
    if isinstance(source, Image.Image):
        if source.format is not None and source.format not in FORMATS:
            raise BadSample(
                f"an image of format {source.format}, expected one of {', '.join(FORMATS)}",
                fix="save it as PNG first",
            )
        yield source
        return
    Image.init()
    known = [name for name in FORMATS if name in Image.OPEN]  # HEIF, for example, comes with a plugin
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=known) as image:
        yield image


def check_cost(
    image: Image.Image, max_pixels: int, name: str, where: str | None = None, deep: bool = False
) -> None:
    """BadSample if an image has too many pixels, or decoding it needs too much memory.

    Args:
        image: with its header read.
        max_pixels: the limit.
        name: the argument that the limit comes from.
        where: location for the error.
        deep: whether it has colours of 16 bits, which take more than the table says.
    """
    width, height = image.size
    check_size(width, height, max_pixels, name, where)
    per_pixel = _PEAK_BYTES.get(image.format or "PNG", _PEAK_BYTES_OF_OTHERS)
    peak = (_PEAK_BYTES_OF_OTHERS if deep else per_pixel) * width * height
    budget = BUDGET_BYTES * max_pixels
    if peak > budget:
        raise BadSample(
            f"{height} x {width} pixels of {image.format} need about {peak / 1e6:,.0f} MB to decode, more "
            f"than {budget / 1e6:,.0f} MB ({BUDGET_BYTES} bytes for each of {name} = {max_pixels})",
            where=where,
            fix=f"shrink the file or save it as JPEG, or raise {name} if you trust it",
        )


def check_size(width: int, height: int, limit: int, name: str, where: str | None = None) -> None:
    """BadSample if an image has more pixels than `limit`, the value of the argument `name`."""
    if height * width > limit:
        raise BadSample(
            f"{height} x {width} pixels, more than {name} = {limit}",
            where=where,
            fix=f"shrink the file, or raise {name} if you trust it",
        )
