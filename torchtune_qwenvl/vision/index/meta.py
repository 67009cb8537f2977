"""meta.json: what an index holds and what made it. It is written last, so it decides what counts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

META = "meta.json"
FORMAT = 1
DTYPES = ("float32", "float16")


@dataclass(frozen=True)
class Part:
    """A file of vectors: one row per image, or one per token."""

    file: str
    rows: int


@dataclass(frozen=True)
class Meta:
    """What meta.json says.

    Attributes:
        fingerprint: of the encoder and of how its images are read (`VisionPipeline.fingerprint`).
        settings: pool, layer and at, as the pipeline's call takes them; without a pooling also the factor by
            which tokens are pooled.
        encoder: how to load the pipeline again; empty if that is not known.
        root: the data folder, absolute.
        dtype: of the stored vectors, "float32" or "float16".
        part_size: images per part, good and bad.
        width: of a vector; None before the first.
        parts: files of vectors in their order.
        rows, failed: numbers of images and of bad images.
        files_bytes, failed_bytes: how much of files.jsonl and failed.jsonl counts.
        complete: False while images that were asked for are missing.
    """

    fingerprint: str
    settings: Mapping[str, Any]
    root: str
    encoder: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float32"
    part_size: int = 1024
    width: int | None = None
    parts: tuple[Part, ...] = ()
    rows: int = 0
    failed: int = 0
    files_bytes: int = 0
    failed_bytes: int = 0
    complete: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, got {self.dtype!r}")
        if self.part_size < 1:
            raise ValueError(f"part_size: expected at least 1, got {self.part_size}")

    @property
    def keeps_tokens(self) -> bool:
        """Whether an image has several vectors, its tokens."""
        return self.settings["pool"] is None

    def to_json(self) -> str:
        """The content of meta.json."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"


def checked_settings(pool: str | None, factor: int, layer: int | None, at: str | None) -> dict[str, Any]:
    """`Meta.settings`; the arguments are those of `ImageIndex.build`.

    Raises:
        ValueError: a pooling without a name, or a factor that cannot be.
    """
    if pool is not None and not isinstance(pool, str):
        raise ValueError(f"pool: expected the name of a pooling or None, got {pool!r}")
    if factor < 1 or (factor > 1 and pool is not None):
        raise ValueError(f"factor: expected at least 1, and more than 1 only with pool=None, got {factor}")
    settings = {"pool": pool, "layer": layer, "at": at}
    return settings if pool is not None else {**settings, "factor": factor}


def read_meta(folder: Path) -> Meta:
    """meta.json of an index.

    Raises:
        ValueError: the folder is no index, or one of another version.
    """
    file = folder / META
    if not file.is_file():
        raise ValueError(f"{folder}: no {META} there, expected a folder that ImageIndex.build has written")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        version = content.pop("format")
        if version == FORMAT:
            content["parts"] = tuple(Part(**part) for part in content["parts"])
            return Meta(**content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: not the meta.json of an index ({error!r})") from error
    raise ValueError(f"{file}: written in format {version}, expected {FORMAT}. Build the index again")
