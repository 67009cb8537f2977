"""Images by path: where relative paths start, what image_root keeps in, what is no image source."""

import base64
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import torch
from PIL import Image

from torchtune_qwenvl.data.records.media import MediaFinder
from torchtune_qwenvl.transforms.errors import BadSample


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """root/in.png, outside.png, root/link.png -> outside.png, root/inner.png -> in.png."""
    (tmp_path / "root/sub").mkdir(parents=True)
    for name in ("root/in.png", "outside.png"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "root/link.png").symlink_to(tmp_path / "outside.png")
    (tmp_path / "root/inner.png").symlink_to("in.png")
    return tmp_path


def test_relative_paths_start_from_root_or_the_data_file(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = (tree / "root/in.png").resolve()
    assert MediaFinder(tree / "root")("in.png", folder=tree) == expected
    assert MediaFinder()("root/in.png", folder=tree) == expected
    assert MediaFinder()(str(expected)) == expected
    assert MediaFinder()(f"file://{expected}") == expected
    monkeypatch.chdir(tree)
    assert MediaFinder()("root/in.png") == expected
    assert MediaFinder(Path("root"))("in.png") == expected


@pytest.mark.parametrize(
    "path",
    [
        *("../outside.png", "link.png", "{tree}/outside.png", "file://{tree}/outside.png"),
        "sub/../link.png",
    ],
)
def test_paths_do_not_leave_image_root(tree: Path, path: str) -> None:
    with pytest.raises(BadSample, match=r"outside.png|link.png leaves image_root .*keep images below"):
        MediaFinder(tree / "root")(path.format(tree=tree))
    assert MediaFinder()(path.format(tree=tree), folder=tree / "root") == (tree / "outside.png").resolve()


def test_a_loop_of_links_hides_no_link(tree: Path) -> None:
    (tree / "root/loop").symlink_to("loop")
    with pytest.raises(BadSample, match="cannot be an image file"):
        MediaFinder(tree / "root")("loop/../link.png")


def test_links_and_absolute_paths_inside_image_root(tree: Path) -> None:
    find = MediaFinder(tree / "root")
    assert find("inner.png") == find(str(tree / "root/in.png")) == (tree / "root/in.png").resolve()


@pytest.mark.parametrize(("path", "found"), [("nothing.png", "nothing"), ("root", "a folder")])
def test_missing_files_say_where_they_were_looked_for(tree: Path, path: str, found: str) -> None:
    pattern = f"expected an image file at {tree.resolve() / path}, found {found} .*set image_root.*{tree}"
    with pytest.raises(BadSample, match=pattern):
        MediaFinder()(path, folder=tree)


@pytest.mark.parametrize(
    "image", [b"bytes", Image.new("RGB", (2, 2)), np.zeros((2, 2, 3), np.uint8), torch.zeros(3, 2, 2)]
)
def test_images_in_memory_pass(image: Any) -> None:
    assert MediaFinder()(image) is image


def test_datasets_images(tree: Path) -> None:
    assert MediaFinder()({"bytes": b"x", "path": "in.png"}) == b"x"
    assert MediaFinder()({"bytes": None, "path": "in.png"}, tree / "root") == (tree / "root/in.png").resolve()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (3, "expected an image as path, URL or bytes, got int 3"),
        (None, "got NoneType None"),
        ("", "got str ''"),
        ({"bytes": None, "path": None}, "got NoneType"),
        ("data:image/png;base64,AAA", "expected base64, got 3 characters 'AAA'.*cut short"),
        ("data:image/png;base64,ü.png", "expected base64, got 5 characters 'ü.png'.*ASCII"),
        ("data:image/png,AAAA", r"expected data:image/...;base64,..., got data:image/png,AAAA"),
        ("data:text/html;base64,AAAA", "expected data:image/..., got data:text/html"),
        ("data:image/png;base64,", "expected base64, got nothing"),
        ({"base64": "a/b.png"}, "expected base64, got 7 characters 'a/b.png'.*or a path"),
        ({"base64": "A" * 2000}, r"of 1500 bytes, larger than the limit of 1000 bytes \(url_max_bytes\)"),
        ("s3://bucket/a.png", r"expected a path or an http\(s\) URL, got s3://bucket/a.png.*download"),
        ("https://x.org/a.png", "an image URL, https://x.org/a.png.*allow_urls: true"),
    ],
)
def test_refuses(source: Any, message: str) -> None:
    with pytest.raises(BadSample, match=message):
        MediaFinder(max_bytes=1000)(source)


@pytest.mark.parametrize("content", [b"x", bytes(range(256)), bytes(1000)])
def test_base64(content: bytes) -> None:
    text = base64.b64encode(content).decode()
    wrapped = "\n".join(text[i : i + 60] for i in range(0, len(text), 60))
    sources = [
        *(f"data:{head};base64,{text}" for head in ("image/png", "", "image/jpeg;name=a.jpg")),
        f"DATA:image/png;base64,{quote(wrapped)}",
        {"base64": wrapped},
        {"base64": base64.urlsafe_b64encode(content).decode()},
    ]
    assert [MediaFinder(max_bytes=1000)(source) for source in sources] == [content] * len(sources)


def test_strings_are_base64_where_that_is_said(tree: Path) -> None:
    find = MediaFinder(strings="base64")
    assert find("aW1hZ2U=") == b"image" and find(tree / "outside.png").is_file()
    with pytest.raises(ValueError, match=r'image_strings: expected "path" or "base64", got \'text\''):
        MediaFinder(strings="text")  # type: ignore[arg-type]


def test_base64_taken_for_a_path_is_not_repeated_at_length() -> None:
    with pytest.raises(
        BadSample, match=r"'AAAA.* cannot be an image file: File name too long .*image_strings"
    ) as caught:
        MediaFinder()("A" * 100_000)
    assert len(str(caught.value)) < 500
