"""A tiny checkpoint folder of each family, with an image and a clip in it."""

from pathlib import Path

import pytest
import tiny
from videos import encode


@pytest.fixture(scope="session", params=tiny.FAMILIES)
def folder(request, tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="session")
def qwen3_vl(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("qwen3_vl"), "qwen3_vl")


def write_folder(folder: Path, family: str) -> Path:
    tiny.save_tiny_folder(folder, family=family, seed=4)
    tiny.photo(56, 84).save(folder / "a.png")
    tiny.photo(84, 56, seed=1).save(folder / "b.jpg", quality=90)
    encode(folder / "clip.mp4", 8, 60, 90, rate=4, codec="mpeg4")
    return folder
