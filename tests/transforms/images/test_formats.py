"""Only listed formats are opened, under limits of memory and time."""

import io
import os
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

from torchtune_qwenvl.transforms.errors import BadSample
from torchtune_qwenvl.transforms.images import decode
from torchtune_qwenvl.transforms.images.decode import decode_image, open_image
from torchtune_qwenvl.transforms.videos.open_video import open_video

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n"


@pytest.fixture
def ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program named gs that notes that it was called; the note's path."""
    note = tmp_path / "called"
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho called > {note}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return note


def test_a_file_that_would_start_a_program_is_refused(ghostscript, tmp_path):
    path = tmp_path / "cat.jpg"
    path.write_bytes(EPS)
    lazy = Image.open(io.BytesIO(EPS))
    for source in (path, str(path), EPS, lazy):
        with pytest.raises(BadSample, match="format"):
            decode_image(source)
    for source in (path, EPS, [path, EPS], [lazy]):
        with pytest.raises(BadSample):
            list(open_video(source).frames([0]))
    assert not ghostscript.exists()


@pytest.mark.parametrize(
    "content", [b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"8BPS" + bytes(60), b"%PDF-1.4"]
)
def test_other_formats_are_named_by_what_is_read(content):
    with pytest.raises(BadSample, match=r"not an image of a format that is read \(JPEG, "):
        decode_image(content)


def test_the_budget_counts_what_a_format_needs(monkeypatch):
    """WebP decodes into several copies, so fewer of its pixels fit."""
    files = {}
    for kind in ("PNG", "WEBP"):
        buffer = io.BytesIO()
        tiny.photo(40, 60).save(buffer, kind)
        files[kind] = buffer.getvalue()
    assert open_image(files["PNG"], max_image_pixels=2400).decode().shape == (3, 40, 60)
    with pytest.raises(BadSample, match=r"40 x 60 pixels of WEBP need about .* more than .* = 2400"):
        open_image(files["WEBP"], max_image_pixels=2400)
    assert open_image(files["WEBP"], max_image_pixels=2400 * 3).decode().shape == (3, 40, 60)


def test_decoding_has_a_time_limit(monkeypatch):
    opened = open_image(np.zeros((4, 6, 3), np.uint8))
    monkeypatch.setattr(decode, "TIME_LIMIT", 0.2)
    slow = decode.OpenedImage("cat.png", 4, 6, lambda: time.sleep(3))
    began = time.monotonic()
    with pytest.raises(BadSample, match=r"cat\.png: cannot be decoded: takes longer than 0\.2 seconds"):
        slow.decode()
    assert time.monotonic() - began < 2
    assert opened.decode().shape == (3, 4, 6)  # the next image is not held up
