"""Two images or clips have one key if they give the same patches; finding it decodes no file."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from torchtune_qwenvl import load_transform
from torchtune_qwenvl.training.features.keys import file_state, key_of, settings_digest
from torchtune_qwenvl.transforms.images.decode import OpenedImage
from torchtune_qwenvl.transforms.media_planner import MediaGrid, PlannedMedia
from torchtune_qwenvl.transforms.videos.open_video import OpenedVideo


def key(
    folder: Path, source: Any, kind: str = "image", settings: dict | None = None, **options: Any
) -> bytes:
    transform = load_transform(folder, **{"dtype": "uint8", **(settings or {})})
    made_by = transform.image_transform if kind == "image" else transform.video_transform
    planned = PlannedMedia(made_by, made_by.plan(source, **options), MediaGrid(1, 1), source)
    return key_of(planned, settings_digest(made_by))


def test_another_path_or_limit_that_changes_nothing_is_the_same(qwen3_vl: Path, tmp_path: Path) -> None:
    a, copy = qwen3_vl / "a.png", tmp_path / "copy.png"
    shutil.copy(a, copy)
    same = {
        key(qwen3_vl, a),
        key(qwen3_vl, str(copy)),
        key(qwen3_vl, a.read_bytes()),
        key(qwen3_vl, a, settings={"max_pixels": 10**6}),
        key(qwen3_vl, a, max_pixels=10**5),
    }
    assert len(same) == 1


def test_what_changes_patches_changes_the_key(qwen3_vl: Path) -> None:
    a, clip = qwen3_vl / "a.png", qwen3_vl / "clip.mp4"
    pixels = np.asarray(Image.open(a).convert("RGB"))
    edited = pixels.copy()
    edited[0, 0, 0] ^= 1
    keys = [
        key(qwen3_vl, a),
        key(qwen3_vl, qwen3_vl / "b.jpg"),
        key(qwen3_vl, a, resized_height=96, resized_width=96),
        key(qwen3_vl, a, settings={"dtype": "float32"}),
        key(qwen3_vl, a, settings={"dtype": "bfloat16"}),
        key(qwen3_vl, pixels),
        key(qwen3_vl, edited),
        key(qwen3_vl, pixels[:, ::-1].copy()),
        key(qwen3_vl, Image.fromarray(edited)),
        key(qwen3_vl, clip, "video"),
        key(qwen3_vl, clip, "video", num_frames=2),
        key(qwen3_vl, clip, "video", num_frames=2, video_start=1.0),
        key(qwen3_vl, clip, "video", settings={"dtype": "float32"}),
        key(qwen3_vl, [a, a], "video", source_fps=2.0),
        key(qwen3_vl, [a, a, a, a], "video", source_fps=2.0),
        key(qwen3_vl, torch.from_numpy(np.stack([pixels] * 2)).permute(0, 3, 1, 2), "video", source_fps=2.0),
    ]
    assert len(set(keys)) == len(keys)


def test_images_in_memory_are_known_by_their_pixels(qwen3_vl: Path, tmp_path: Path) -> None:
    pixels = np.asarray(Image.open(qwen3_vl / "a.png").convert("RGB"))
    turned = Image.fromarray(pixels)
    turned.getexif()[0x0112] = 3
    upside_down = Image.fromarray(pixels[::-1, ::-1].copy())
    assert key(qwen3_vl, turned) == key(qwen3_vl, upside_down) != key(qwen3_vl, Image.fromarray(pixels))
    assert key(qwen3_vl, pixels) == key(qwen3_vl, pixels.copy())


def test_no_file_is_decoded(qwen3_vl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for opened, name in ((OpenedImage, "decode"), (OpenedVideo, "frames")):
        monkeypatch.setattr(opened, name, lambda *_: pytest.fail("decoded"))
    key(qwen3_vl, qwen3_vl / "a.png")
    key(qwen3_vl, (qwen3_vl / "b.jpg").read_bytes())
    key(qwen3_vl, qwen3_vl / "clip.mp4", "video")
    key(qwen3_vl, [qwen3_vl / "a.png"] * 4, "video", source_fps=2.0)


def test_a_file_that_is_replaced_has_another_state(tmp_path: Path) -> None:
    file, other = tmp_path / "x", tmp_path / "y"
    file.write_bytes(b"abc")
    before = file_state([file, b"bytes", str(file)])
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    assert file_state([file, b"bytes", str(file)]) == before and file_state(b"bytes") == ()
    other.write_bytes(b"abd")
    os.utime(other, ns=times)
    os.replace(other, file)
    assert file_state([file, b"bytes", str(file)]) != before
