"""Damaged and hostile media through the transform: a sample or an error with its place; no hang, no crash.

Files of many kinds are damaged in many ways, and bombs are made by hand.
"""

import io
import random
import struct
import zlib
from pathlib import Path

import pytest
import tiny
from faults.campaign import campaign_seed, campaign_size
from faults.watched import Outcome, run_watched
from PIL import Image
from torchtune.data import Message
from videos import encode

from torchtune_qwenvl import load_transform

PHOTO = tiny.photo(90, 120)
CASES = campaign_size(6, 270)  # per kind of file
FINE = ("result", "BadSample", "SampleTooLong")


def turned(image: Image.Image) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "x" * 50
    return exif


FRAMES = [PHOTO.rotate(9 * number) for number in range(1, 5)]
IMAGES = {
    "a.jpg": (PHOTO, {"quality": 80}),
    "progressive.jpg": (PHOTO, {"progressive": True}),
    "turned.jpg": (PHOTO, {"exif": turned(PHOTO)}),
    "cmyk.jpg": (PHOTO.convert("CMYK"), {}),
    "a.png": (PHOTO, {}),
    "turned.png": (PHOTO, {"exif": turned(PHOTO)}),
    "palette.png": (PHOTO.convert("P"), {"transparency": 3}),
    "deep.png": (PHOTO.convert("I;16"), {}),
    "a.webp": (PHOTO, {}),
    "lossless.webp": (PHOTO, {"lossless": True, "exif": turned(PHOTO)}),
    "moving.webp": (PHOTO, {"save_all": True, "append_images": FRAMES}),
    "a.gif": (PHOTO, {"save_all": True, "append_images": FRAMES, "duration": 100}),
    "a.tif": (PHOTO, {}),
    "lzw.tif": (PHOTO, {"compression": "tiff_lzw"}),
    "jpeg.tif": (PHOTO, {"compression": "jpeg"}),
    "turned.tif": (PHOTO, {"compression": "tiff_adobe_deflate", "exif": turned(PHOTO)}),
    **{
        f"a.{suffix}": (PHOTO, {})
        for suffix in ("bmp", "ppm", "ico", "jp2", "avif", "tga", "pcx", "dds", "sgi")
    },
}
VIDEOS = {
    "h264.mp4": "libx264", "mpeg4.mp4": "mpeg4", "vp8.webm": "libvpx", "mpeg4.avi": "mpeg4",
    "h264.mkv": "libx264", "mpeg2.mpg": "mpeg2video", "h264.flv": "libx264", "h264.ts": "libx264",
}  # fmt: skip


@pytest.fixture(scope="module")
def transform(tiny_folder):
    return load_transform(
        tiny_folder, max_seq_len=4096, max_pixels=50000, dtype="uint8", decode_timeout=15.0, max_frames=8
    )


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    for name, (image, options) in IMAGES.items():
        image.save(folder / name, **options)
    pytest.importorskip("av")
    for name, codec in VIDEOS.items():
        encode(folder / name, 24, 64, 80, codec=codec)
    return folder


def damaged(data: bytes, rng: random.Random) -> bytes:
    """The bytes with one kind of damage: flipped bits, odd fields, a cut, copied, removed or random parts."""
    changed = bytearray(data)
    size = len(changed)
    head = min(size, rng.choice((32, 128, 700, size)))
    kind = rng.choice(("bits", "bits", "bytes", "field", "field", "cut", "copied", "removed", "random"))
    at = rng.randrange(head)
    if kind == "bits":
        for _ in range(rng.choice((1, 2, 4, 16))):
            changed[rng.randrange(head)] ^= 1 << rng.randrange(8)
    elif kind == "bytes":
        for _ in range(rng.choice((1, 2, 5))):
            changed[rng.randrange(head)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
    elif kind == "field":
        width = rng.choice((2, 4, 8))
        value = rng.choice((0, 1, 65535, 2**15, 2**24, 2**31 - 1, 2**32 - 1, 2**63)) % 2 ** (8 * width)
        changed[at : at + width] = value.to_bytes(width, rng.choice(("big", "little")))
    elif kind == "cut":
        del changed[rng.randrange(size) :]
    elif kind == "copied":
        source, length = rng.randrange(size), rng.randrange(1, min(200, size))
        changed[at : at + length] = changed[source : source + length]
    elif kind == "removed":
        del changed[at : at + rng.randrange(1, 64)]
    else:
        length = rng.randrange(1, 400)
        changed[at : at + length] = rng.randbytes(length)
    return _resealed(changed) if data.startswith(b"\x89PNG") and rng.random() < 0.7 else bytes(changed)


def _resealed(png: bytearray) -> bytes:
    """The checksums made right again, so that the damage gets further than the first chunk."""
    at = 8
    while at + 12 <= len(png):
        length = int.from_bytes(png[at : at + 4], "big")
        if at + 12 + length > len(png):
            break
        checksum = zlib.crc32(png[at + 4 : at + 8 + length])
        png[at + 8 + length : at + 12 + length] = checksum.to_bytes(4, "big")
        at += 12 + length
    return bytes(png)


def read(transform, kind: str, source: bytes | str) -> str:
    """Length of the sample; its size, read from the header, must be the same."""
    question = [{"type": kind, "content": source}, {"type": "text", "content": "What is this?"}]
    messages = {"messages": [Message("user", question), Message("assistant", "A cat.")]}
    sample = transform(messages)
    announced = transform.size(messages).tokens
    assert announced == len(sample["tokens"]), f"{announced} tokens announced, {len(sample['tokens'])} came"
    return str(len(sample["tokens"]))


def check(outcomes: list[Outcome], names: list[str]) -> None:
    wrong = [
        (names[o.case], o) for o in outcomes if o.kind not in FINE or o.seconds > 20 or o.megabytes > 1000
    ]
    assert not wrong, f"{len(wrong)} of {len(outcomes)}: {wrong[:5]}"


@pytest.mark.parametrize("name", [*IMAGES, *VIDEOS])
def test_damaged_media_are_samples_or_bad_samples(name, media, transform, tmp_path):
    rng = random.Random(f"{campaign_seed()} {name}")
    original = (media / name).read_bytes()
    cases = [damaged(original, rng) for _ in range(CASES)]
    path = tmp_path / name

    def run(case: bytes) -> str:
        path.write_bytes(case)
        return read(transform, "video" if name in VIDEOS else "image", str(path))

    check(run_watched(cases, run), [name] * len(cases))


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *, before: bytes = b"", pixels: bytes = b"", bits=8, colour=2) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def zeros(size: int) -> bytes:
    packer = zlib.compressobj(9)
    return b"".join([*(packer.compress(bytes(1 << 20)) for _ in range(size >> 20)), packer.flush()])


def gif(frames: int, width: int = 64, height: int = 64) -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    frame = b"\x21\xf9\x04\x08\x0a\0\0\0\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0"
    return head + frame * frames + b";"


def saved(size: tuple[int, int], kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, kind, **options)
    return buffer.getvalue()


def many_scans() -> bytes:
    """A progressive JPEG whose last scan is repeated 2,000 times."""
    buffer = io.BytesIO()
    tiny.photo(600, 600).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    start = data.rfind(b"\xff\xda")
    return data[:-2] + data[start:-2] * 2000 + b"\xff\xd9"


SIDES = ((2**31 - 1, 2**31 - 1), (2**31 - 1, 1), (0, 0))
ROW = zlib.compress((b"\0" + bytes(64 * 3)) * 64)
SMALL_BOMBS = {
    **{
        f"png {w}x{h}": lambda w=w, h=h: png(w, h, pixels=ROW)
        for w, h in ((2**31 - 1,) * 2, (2**31 - 1, 1), (0, 0))
    },
    "png with pixels for 1 GB": lambda: png(64, 64, pixels=zeros(1 << 30)),
    "png with a text of 64 MB": lambda: png(
        64, 64, before=chunk(b"zTXt", b"k\0\0" + zeros(64 << 20)), pixels=ROW
    ),
    "png with 10^5 empty chunks": lambda: png(64, 64, before=chunk(b"teSt", b"") * 10**5, pixels=ROW),
    "gif of 10^5 frames": lambda: gif(10**5),
    "gif of 65535 x 65535": lambda: gif(2, 65535, 65535),
    "ppm of any size": lambda: b"P6 2147483647 2147483647 255\n",
    "jpeg with 2,000 scans": many_scans,
    "eps that never ends": lambda: (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n/loop { loop } loop\n"
    ),
    "ico with 65,535 entries": lambda: b"\0\0\1\0" + struct.pack("<H", 65535) + bytes(10**6),
}
LARGE_BOMBS = {
    "png of 9400 x 9400": lambda: png(9400, 9400, pixels=zeros(9400 * (9400 * 3 + 1))),
    "deep png of 9400 x 9400": lambda: png(
        9400, 9400, pixels=zeros(9400 * (9400 * 8 + 1)), bits=16, colour=6
    ),
    "webp of 9400 x 9400": lambda: saved((9400, 9400), "WEBP", quality=1),
    "jpeg of 9400 x 9400": lambda: saved((9400, 9400), "JPEG", quality=1),
    "progressive jpeg of 9400 x 9400": lambda: saved((9400, 9400), "JPEG", quality=1, progressive=True),
    "gif of 10^6 frames": lambda: gif(10**6),
    "png with 10^6 empty chunks": lambda: png(64, 64, before=chunk(b"teSt", b"") * 10**6, pixels=ROW),
}


def test_bombs_are_samples_or_bad_samples(transform, tmp_path):
    bombs = SMALL_BOMBS | campaign_size({}, LARGE_BOMBS)
    names = list(bombs)
    for name in names:
        (tmp_path / name).write_bytes(bombs[name]())
    check(run_watched(names, lambda name: read(transform, "image", str(tmp_path / name))), names)


def test_gifs_of_many_frames_as_videos(transform, tmp_path):
    pytest.importorskip("av")
    counts = [10**4, *campaign_size([], [10**5, 10**6])]
    for count in counts:
        (tmp_path / f"{count}.gif").write_bytes(gif(count))
    names = [f"{count}.gif" for count in counts]
    check(run_watched(names, lambda name: read(transform, "video", str(tmp_path / name))), names)
