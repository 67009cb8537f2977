"""Images with more than 8 bits are scaled by the depth that they were recorded with."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from torchtune_qwenvl.transforms.images.decode import decode_image


def as_file(values: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, kind)
    return buffer.getvalue()


def deep_png(values: np.ndarray) -> bytes:
    """16 bits per channel [h, w, 3 | 4], which Pillow cannot write."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    sealed = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(sealed)


def ramp(bits: int) -> np.ndarray:
    return np.linspace(0, 2**bits - 1, 40 * 60).astype(np.uint16).reshape(40, 60)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_values_keep_their_upper_8_bits_whatever_their_depth(bits):
    grey = ramp(bits)
    sources = [
        *(as_file(grey, kind) for kind in ("PNG", "TIFF")),
        as_file(grey.astype(np.int32), "TIFF"),
        Image.fromarray(grey.astype(np.int32)),
        grey,
    ]
    for source in sources:
        decoded = decode_image(source).numpy()
        assert decoded.max() == 255
        np.testing.assert_array_equal(decoded, np.broadcast_to(grey >> (bits - 8), (3, 40, 60)))


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_deep_colours_of_a_png(bits):
    values = np.stack([ramp(bits), ramp(bits)[::-1], ramp(bits)[:, ::-1]], 2)
    decoded = decode_image(deep_png(values)).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(decoded, values >> (bits - 8))


def test_deep_colours_with_alpha_lie_on_white():
    values = np.stack([ramp(16)] * 3 + [np.zeros((40, 60), np.uint16)], 2)
    assert decode_image(deep_png(values)).min() == 255
