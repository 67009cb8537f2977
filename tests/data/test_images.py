"""Images by path: where relative paths start, what image_root keeps in, what is no image source."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from torchtune_qwenvl.data.images import ImageFinder
from torchtune_qwenvl.transforms.errors import BadSample


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """root/in.png, outside.png, root/link.png -> outside.png, root/inner.png -> in.png."""
    (tmp_path / "root").mkdir()
    for name in ("root/in.png", "outside.png"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "root/link.png").symlink_to(tmp_path / "outside.png")
    (tmp_path / "root/inner.png").symlink_to("in.png")
    return tmp_path


def test_relative_paths_start_from_root_or_the_data_file(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = (tree / "root/in.png").resolve()
    assert ImageFinder(tree / "root")("in.png", folder=tree) == expected
    assert ImageFinder()("root/in.png", folder=tree) == expected
    assert ImageFinder()(str(expected)) == expected
    assert ImageFinder()(f"file://{expected}") == expected
    monkeypatch.chdir(tree)
    assert ImageFinder()("root/in.png") == expected
    assert ImageFinder(Path("root"))("in.png") == expected


@pytest.mark.parametrize(
    "path", ["../outside.png", "link.png", "{tree}/outside.png", "file://{tree}/outside.png"]
)
def test_paths_do_not_leave_image_root(tree: Path, path: str) -> None:
    with pytest.raises(BadSample, match=r"outside.png|link.png leaves image_root .*keep images below"):
        ImageFinder(tree / "root")(path.format(tree=tree))
    assert ImageFinder()(path.format(tree=tree), folder=tree / "root") == (tree / "outside.png").resolve()


def test_links_and_absolute_paths_inside_image_root(tree: Path) -> None:
    find = ImageFinder(tree / "root")
    assert find("inner.png") == find(str(tree / "root/in.png")) == (tree / "root/in.png").resolve()


@pytest.mark.parametrize(("path", "found"), [("nothing.png", "nothing"), ("root", "a folder")])
def test_missing_files_say_where_they_were_looked_for(tree: Path, path: str, found: str) -> None:
    pattern = f"expected an image file at {tree.resolve() / path}, found {found} .*set image_root.*{tree}"
    with pytest.raises(BadSample, match=pattern):
        ImageFinder()(path, folder=tree)


@pytest.mark.parametrize(
    "image", [b"bytes", Image.new("RGB", (2, 2)), np.zeros((2, 2, 3), np.uint8), torch.zeros(3, 2, 2)]
)
def test_images_in_memory_pass(image: Any) -> None:
    assert ImageFinder()(image) is image


def test_datasets_images(tree: Path) -> None:
    assert ImageFinder()({"bytes": b"x", "path": "in.png"}) == b"x"
    assert ImageFinder()({"bytes": None, "path": "in.png"}, tree / "root") == (tree / "root/in.png").resolve()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (3, "expected an image as path, URL or bytes, got int 3"),
        (None, "got NoneType None"),
        ("", "got str ''"),
        ({"bytes": None, "path": None}, "got NoneType"),
        (
            "data:image/png;base64,AAAA",
            "image data inside the text .data:image/png;base64.*write the image to",
        ),
        ("s3://bucket/a.png", r"expected a path or an http\(s\) URL, got s3://bucket/a.png.*download"),
        ("https://x.org/a.png", "an image URL, https://x.org/a.png.*allow_urls: true"),
    ],
)
def test_refuses(source: Any, message: str) -> None:
    with pytest.raises(BadSample, match=message):
        ImageFinder()(source)
