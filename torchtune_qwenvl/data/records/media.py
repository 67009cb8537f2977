"""Finds what a record names as image or video: a checked path, or bytes, that the transform can decode."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import numpy as np
import torch
from PIL import Image

from torchtune_qwenvl.data.records.inline_media import read_base64, read_data_url
from torchtune_qwenvl.data.records.text import shown
from torchtune_qwenvl.data.records.urls import MAX_BYTES, UrlPolicy, fetch
from torchtune_qwenvl.transforms.errors import BadSample

# At least two letters, so that C:\images is a path.
_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+)://|(data):", re.IGNORECASE)

_A = {"image": "an image", "video": "a video"}


@dataclass(frozen=True)
class MediaFinder:
    """Finds images and videos; safe to call from workers.

    Attributes:
        root: folder that relative paths start from and that no path may leave, even by a symbolic link. With
            None, relative paths start from the data file's folder (or the working directory), and any path is
            allowed.
        urls: how URLs are read; None refuses them. ``data:`` URLs hold the image and are always read.
        max_bytes: largest base64 image.
        strings: how strings are read: "path" (or URL), or "base64".
    """

    root: Path | None = None
    urls: UrlPolicy | None = None
    max_bytes: int = MAX_BYTES
    strings: Literal["path", "base64"] = "path"

    def __post_init__(self) -> None:
        if self.strings not in ("path", "base64"):
            raise ValueError(f'image_strings: expected "path" or "base64", got {self.strings!r}')

    def __call__(self, source: Any, folder: Path | None = None, kind: str = "image") -> Any:
        """Find one image or video.

        Args:
            source: a path, a file, http, https or data URL, ``{"base64": ...}``, bytes, a ``datasets`` image
                ``{"bytes", "path"}``, a PIL image, array or tensor. A video may also be a list of its frames.
            folder: the data file's folder.
            kind: "image" or "video".

        Returns:
            A :class:`~pathlib.Path` of an existing file, bytes, or the PIL image, array or tensor unchanged;
            for a list, a list of these.

        Raises:
            BadSample: no such file, a path outside ``root``, a URL that is not allowed or fails, or invalid
                base64.
        """
        if kind == "video" and isinstance(source, (list, tuple)):
            return [self(frame, folder) for frame in source]
        if isinstance(source, Mapping) and isinstance(source.get("base64"), str):
            return read_base64(source["base64"], self.max_bytes)
        if isinstance(source, Mapping):
            source = next((source[key] for key in ("bytes", "path", "url") if source.get(key)), None)
        if isinstance(source, (bytes, Image.Image, np.ndarray, torch.Tensor)):
            return source
        if not isinstance(source, (str, os.PathLike)) or not str(source):
            came = f"{type(source).__name__} {shown(source)}"
            raise BadSample(
                f"expected {_A[kind]} as path, URL or bytes, got {came}",
                fix=f"name the {kind}, or remove the part",
            )
        scheme = _SCHEME.match(str(source))
        if scheme is None and kind == "image" and self.strings == "base64" and isinstance(source, str):
            return read_base64(source, self.max_bytes)
        if scheme is None:
            return self._find(Path(source), folder, kind)
        return self._open_url(str(source), (scheme[1] or scheme[2]).lower(), folder, kind)

    def is_file(self, text: str, folder: Path | None = None) -> bool:
        """Whether a text names a file, from `root`, the data file's folder or the working directory."""
        bases = {str(self.root or ""), str(folder or "")}
        return any(os.path.isfile(os.path.join(base, text)) for base in bases)

    def _open_url(self, url: str, scheme: str, folder: Path | None, kind: str) -> Path | bytes:
        if scheme == "file":
            return self._find(Path(unquote(urlsplit(url).path)), folder, kind)
        if scheme == "data":
            return read_data_url(url, self.max_bytes, kind)
        if scheme not in ("http", "https"):
            raise BadSample(f"expected a path or an http(s) URL, got {url}", fix=f"download the {kind} first")
        if self.urls is None:
            raise BadSample(f"{_A[kind]} URL, {url}", fix="URLs are read with allow_urls: true only")
        return fetch(url, self.urls)

    def _find(self, path: Path, folder: Path | None, kind: str) -> Path:
        base = self.root or folder or Path()
        try:
            # Strictly: otherwise what follows a loop of links stays as it is, links to elsewhere included.
            found = (base / path).resolve(strict=True)
        except FileNotFoundError:
            absent = Path(os.path.normpath(base.resolve() / path))
            self._check_inside(path, absent, kind)
            raise self._missing(absent, base, kind, "nothing") from None
        except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name too long, a NUL in it
            reason = getattr(error, "strerror", None) or str(error)
            raise BadSample(
                f"{_short(path)!r} cannot be {_A[kind]} file: {reason:.200}",
                fix="correct it; for base64 text set dataset.image_strings=base64",
            ) from error
        self._check_inside(path, found, kind)
        if not found.is_file():
            raise self._missing(found, base, kind, "a folder" if found.is_dir() else "no regular file")
        return found

    def _check_inside(self, path: Path, found: Path, kind: str) -> None:
        if self.root is not None and not found.is_relative_to(self.root.resolve()):
            raise BadSample(
                f"{_short(path)} leaves image_root ({self.root})",
                fix=f"keep {kind}s below image_root, or change it",
            )

    def _missing(self, path: Path, base: Path, kind: str, found: str) -> BadSample:
        return BadSample(
            f"expected {_A[kind]} file at {_short(path)}, found {found}",
            fix=f"correct the path or set image_root (relative paths start from {base.resolve()})",
        )


def _short(path: Path) -> str:
    """A path as text; of one that is too long to read, its two ends."""
    text = str(path)
    return text if len(text) <= 300 else f"{text[:150]}…{text[-150:]}"
