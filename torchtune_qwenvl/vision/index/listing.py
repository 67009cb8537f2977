"""Which images a folder or a list holds, and the names they have in an index."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_SUFFIXES = "avif bmp dib gif jfif jp2 jpe jpeg jpg mpo pbm pgm png pnm ppm tga tif tiff webp"
SUFFIXES = frozenset(f".{suffix}" for suffix in _SUFFIXES.split())
Images = str | os.PathLike | Iterable[str | os.PathLike]


class Named(NamedTuple):
    """An image file: its path, and its name relative to the data folder."""

    name: str
    path: str


def list_images(images: Images, root: str | os.PathLike | None = None) -> tuple[str, list[Named]]:
    """Image files in a fixed order, each once.

    Args:
        images: a folder, which is searched with all folders in it, a file, or several of both. A folder
            gives its files sorted by name; files of a list keep its order.
        root: the data folder that names are relative to. Default: the folder, or for a list the folder that
            holds all of it. A file outside of it goes by its absolute path.

    Returns:
        The absolute data folder, and the images.

    Raises:
        ValueError: no images at all, or a path that is neither file nor folder when a single one is given.
    """
    if isinstance(images, str | os.PathLike):
        if not os.path.exists(images):
            raise ValueError(f"{images}: no such folder or file, expected a folder of images")
        images = [images]
    given = [os.path.abspath(path) for path in images]
    paths = [path for each in given for path in (_walk(each) if os.path.isdir(each) else [each])]
    if not paths:
        where = f" in {given[0]}" if len(given) == 1 else ""
        raise ValueError(f"no images{where}: expected files that end in {' '.join(sorted(SUFFIXES))}")
    base = _common(given) if root is None else os.path.abspath(root)
    named = {name_of(path, base): path for path in paths}
    return base, [Named(name, path) for name, path in named.items()]


def name_of(path: str, root: str) -> str:
    """`path` relative to `root` with forward slashes; a path outside of `root` as it is."""
    try:
        return Path(path).relative_to(root).as_posix()
    except ValueError:
        return Path(path).as_posix()


def _walk(folder: str) -> list[str]:
    found = [
        os.path.join(at, name)
        for at, _, names in os.walk(folder)
        for name in names
        if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")
    ]
    return sorted(found, key=lambda path: Path(path).parts)


def _common(paths: list[str]) -> str:
    return os.path.commonpath([path if os.path.isdir(path) else os.path.dirname(path) for path in paths])
