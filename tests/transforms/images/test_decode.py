"""Decoded images equal Pillow's; what cannot be decoded is refused with a helpful message."""

import io
import struct
import zlib

import numpy as np
import pytest
import tiny
import torch
from PIL import Image, ImageOps, PngImagePlugin, TiffImagePlugin

from torchtune_qwenvl.transforms.errors import BadSample
from torchtune_qwenvl.transforms.images.decode import decode_image, image_size, open_image

PHOTO = tiny.photo(40, 60)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def as_pillow_reads(data: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def decoded(source) -> np.ndarray:
    pixels = decode_image(source)
    assert pixels.dtype == torch.uint8 and pixels.shape[1:] == image_size(source)
    return pixels.permute(1, 2, 0).numpy()


PLAIN = {
    "jpeg": encoded(PHOTO, "JPEG"),
    "jpeg without chroma subsampling": encoded(PHOTO, "JPEG", quality=95, subsampling=0),
    "progressive jpeg": encoded(PHOTO, "JPEG", progressive=True),
    "grey jpeg": encoded(PHOTO.convert("L"), "JPEG"),
    "cmyk jpeg": encoded(PHOTO.convert("CMYK"), "JPEG"),
    "cmyk tiff": encoded(PHOTO.convert("CMYK"), "TIFF"),
    "png": encoded(PHOTO, "PNG"),
    "L": encoded(PHOTO.convert("L"), "PNG"),
    "1": encoded(PHOTO.convert("1"), "PNG"),
    "P": encoded(PHOTO.quantize(50), "PNG"),
    "webp": encoded(PHOTO, "WEBP", lossless=True),
    "bmp": encoded(PHOTO, "BMP"),
}


@pytest.mark.parametrize("data", PLAIN.values(), ids=PLAIN)
def test_modes_and_formats_equal_pillow(data, tmp_path):
    (tmp_path / "image").write_bytes(data)
    for source in (data, tmp_path / "image", str(tmp_path / "image"), Image.open(io.BytesIO(data))):
        np.testing.assert_array_equal(decoded(source), as_pillow_reads(data))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(PHOTO, kind, exif=exif)
    np.testing.assert_array_equal(decoded(data), as_pillow_reads(data))
    np.testing.assert_array_equal(decoded(Image.open(io.BytesIO(data))), as_pillow_reads(data))


def test_orientation_after_a_pngs_pixels_is_found_without_decoding(monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    body = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    data = PLAIN["png"][:-12] + chunk + PLAIN["png"][-12:]
    np.testing.assert_array_equal(decoded(data), as_pillow_reads(data))
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda image: pytest.fail("decoded"))
    assert image_size(data) == (60, 40)
    assert image_size(PLAIN["png"]) == (40, 60)


def test_alpha_is_composited_on_white():
    rgba = PHOTO.convert("RGBA")
    rgba.putalpha(Image.fromarray(np.linspace(0, 255, 60, dtype=np.uint8)[None].repeat(40, 0)))
    la = rgba.convert("LA")
    keyed = PHOTO.quantize(16)
    for image, kind, options in [
        (rgba, "PNG", {}),
        (rgba, "WEBP", {"lossless": True}),
        (la, "PNG", {}),
        (keyed, "PNG", {"transparency": 3}),
        (keyed, "GIF", {"transparency": 3}),
        (PHOTO, "PNG", {"transparency": PHOTO.getpixel((5, 5))}),
    ]:
        data = encoded(image, kind, **options)
        values = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA")).astype(float)
        alpha = values[:, :, 3:] / 255
        expected = values[:, :, :3] * alpha + 255 * (1 - alpha)
        assert np.abs(decoded(data) - expected).max() <= 1, (image.mode, kind)
        assert (alpha < 1).any()


def test_16_bit_is_scaled_to_8():
    grey = np.linspace(0, 65535, 40 * 60).astype(np.uint16).reshape(40, 60)
    expected = np.repeat((grey // 256)[:, :, None], 3, 2)
    assert expected.max() == 255
    for source in (encoded(Image.fromarray(grey), "PNG"), encoded(Image.fromarray(grey), "TIFF"), grey):
        np.testing.assert_array_equal(decoded(source), expected)
    np.testing.assert_array_equal(decoded(Image.fromarray(grey.astype(np.int32))), expected)
    # Sixteen-bit colour, which Pillow only reads.
    rows = b"".join(b"\0" + row.astype(">u2").repeat(3).tobytes() for row in grey)
    data = png_chunks(
        b"IHDR" + struct.pack(">IIBBBBB", 60, 40, 16, 2, 0, 0, 0), b"IDAT" + zlib.compress(rows)
    )
    np.testing.assert_array_equal(decoded(data), expected)


def png_chunks(*bodies: bytes) -> bytes:
    chunks = [
        struct.pack(">I", len(b) - 4) + b + struct.pack(">I", zlib.crc32(b)) for b in (*bodies, b"IEND")
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animations_give_their_first_frame(kind):
    colours = ("red", "lime", "blue")
    frames = [Image.new("RGB", (30, 20), colour) for colour in colours]
    data = encoded(
        frames[0],
        kind,
        save_all=True,
        append_images=frames[1:],
        **({"lossless": True} if kind == "WEBP" else {}),
    )
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert np.abs(decoded(data).astype(int) - [255, 0, 0]).max() <= 1


def test_arrays_and_tensors():
    rgb = np.asarray(PHOTO)
    chw = torch.from_numpy(rgb.copy()).permute(2, 0, 1)
    for source in (rgb, chw, chw.contiguous(), np.flipud(np.flipud(rgb))):
        np.testing.assert_array_equal(decoded(source), rgb)
    np.testing.assert_array_equal(decoded(rgb[:, :, :1]), rgb[:, :, :1].repeat(3, 2))
    np.testing.assert_array_equal(decoded(chw[0]), rgb[:, :, :1].repeat(3, 2))
    clear = np.concatenate([rgb, np.zeros((40, 60, 1), np.uint8)], 2)
    assert (decoded(clear) == 255).all()


def test_jpeg_keeps_channels_last_strides():
    assert decode_image(PLAIN["jpeg"]).stride() == (1, 180, 3)


BAD_BYTES = {
    "zero bytes": (b"", "0 bytes, expected an image"),
    "text": (b"not an image at all", "not an image of a format that is read"),
    "truncated jpeg": (PLAIN["jpeg"][:-200], "cannot be decoded: .*truncated"),
    "truncated png": (PLAIN["png"][:-500], "cannot be decoded: .*truncated"),
    "jpeg header only": (PLAIN["jpeg"][:30], "not an image of a format that is read|cannot be"),
}


@pytest.mark.parametrize("data, message", BAD_BYTES.values(), ids=BAD_BYTES)
def test_damaged_files_name_themselves(data, message, tmp_path):
    path = tmp_path / "cat.jpg"
    path.write_bytes(data)
    with pytest.raises(BadSample, match=f"cat.jpg: {message}.*\\(repair or remove the file\\)$"):
        decode_image(path)
    with pytest.raises(BadSample, match=f"image given as bytes: {message}"):
        decode_image(data)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(BadSample, match=r"gone\.jpg: no such image file \(check the path\)$"):
        decode_image(tmp_path / "gone.jpg")
    with pytest.raises(BadSample, match="cannot be opened"):
        decode_image(tmp_path)


def test_pixel_limit_is_read_from_the_header(monkeypatch):
    # A decompression bomb: its header promises 30000 x 30000 pixels.
    bomb = png_chunks(b"IHDR" + struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0), b"IDAT")
    with pytest.raises(BadSample, match=r"decompression bomb|30000 x 30000 pixels"):
        open_image(bomb)
    for source in (PLAIN["png"], PLAIN["jpeg"], PHOTO, np.asarray(PHOTO)):
        with pytest.raises(BadSample, match="40 x 60 pixels, more than max_image_pixels = 2399"):
            open_image(source, max_image_pixels=2399)
        assert image_size(source, max_image_pixels=2400) == (40, 60)


@pytest.mark.parametrize(
    "source",
    [np.zeros((4, 4, 3)), np.zeros((3, 5, 7), np.uint8), torch.zeros(5, 7, 3, dtype=torch.uint8), 7, None],
)
def test_other_types_and_shapes_are_refused(source):
    with pytest.raises(BadSample, match="expected"):
        open_image(source)


def test_float_pixels_are_refused():
    data = encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF")
    with pytest.raises(BadSample, match=r"mode 'F' .* have no fixed range .*8 or 16 bits"):
        decode_image(data)
    assert TiffImagePlugin.TiffImageFile is type(Image.open(io.BytesIO(data)))
