"""Paths as records may write them: a file inside image_root, or an error; never a file outside it.

Paths are put together at random from folders, links, odd files and ways to write them. What may be read is
decided here by the system's own `realpath`.
"""

import os
import random
from pathlib import Path

import pytest
from faults.campaign import campaign_seed, campaign_size

from torchtune_qwenvl.data.records.media import MediaFinder
from torchtune_qwenvl.transforms.errors import BadSample

CASES = campaign_size(1_500, 100_000)
INSIDE, OUTSIDE = b"inside", b"outside"
SEGMENTS = [
    *["in.png", "sub", "deep", ".."] * 4,
    *("in2.png", ".", "", "secret.png", "link.png", "relative.png", "up", "loop.png", "pipe.png", "zero.png"),
    *("missing.png", "%2e%2e", "..%2f", "~", "$HOME", "in.png\0", "n" * 300, "ü.png", " in.png", "in.png "),
    *("..\\", "*", "root", "\udcff", "C:", "con", "-", "in.png#a", "in.png?b"),
]
STARTS = [
    *("", "", "", "", "/", "//", "./", "../", "{root}/", "{tree}/"),
    *(
        "file://{root}/",
        "file://localhost{root}/",
        "FILE://{root}/",
        "file:{root}/",
        "file:///",
        "file://{tree}/",
    ),
    *(
        "file://root/",
        "concat:",
        "pipe:",
        "fd:",
        "subfile,,start,0,end,0,,:",
        "data:",
        "data:image/png;base64,",
    ),
    *("ftp://x/", "s3://x/", "http://127.0.0.1/", "https://[", "javascript:", "hls+file://{tree}/"),
    *("/proc/self/root{tree}/", "/dev/", "C:\\", "\\\\host\\share\\"),
]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """root/ with files, links inside and outside, a pipe and a device; secret.png next to it."""
    tree = tmp_path_factory.mktemp("tree").resolve()
    root = tree / "root"
    (root / "sub" / "deep").mkdir(parents=True)
    (tree / "secret.png").write_bytes(OUTSIDE)
    for name in ("in.png", "sub/in.png", "sub/deep/in.png", "ü.png", " in.png", "in.png#a"):
        (root / name).write_bytes(INSIDE)
    links = {
        "in2.png": "in.png",
        "link.png": tree / "secret.png",
        "relative.png": "../secret.png",
        "up": "..",
    }
    for name, target in {**links, "loop.png": "loop.png", "zero.png": "/dev/zero"}.items():
        (root / name).symlink_to(target)
    os.mkfifo(root / "pipe.png")
    return tree


def random_path(rng: random.Random, tree: Path) -> str:
    start = rng.choice(STARTS).format(root=tree / "root", tree=tree)
    return start + "/".join(rng.choices(SEGMENTS, k=rng.choice([1, 1, 2, 2, 3, 4, 6])))


def may_be_read(path: str, root: Path) -> bool:
    """Whether a path without a scheme is a regular file inside root, by the system's own rules."""
    try:
        real = os.path.realpath(os.path.join(root, path), strict=True)
    except (OSError, ValueError):
        return False
    return real.startswith(f"{root}/") and os.path.isfile(real)


@pytest.mark.parametrize("kind", ["image", "video", "frames"])
def test_random_paths_stay_inside(kind: str, tree: Path) -> None:
    rng = random.Random(f"{campaign_seed()} {kind}")
    root, read = tree / "root", 0
    find = MediaFinder(root)
    for _ in range(CASES):
        path = random_path(rng, tree)
        plain = ":" not in path.split("/")[0]
        try:
            if kind == "frames":
                (found,) = find([path], tree, kind="video")
            else:
                found = find(path, tree, kind=kind)
        except BadSample as error:
            assert not (plain and may_be_read(path, root)), f"{path!r} is inside, but: {error}"
            assert len(str(error)) < 1_000
        else:
            if isinstance(found, bytes):  # what a data URL holds
                assert path.startswith("data:") and OUTSIDE not in found
                continue
            assert found.read_bytes() == INSIDE, path
            read += 1
    assert read > CASES / 100
