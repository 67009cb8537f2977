"""A checkpoint folder's settings for images and videos, from whichever of two files has them.

Published folders have preprocessor_config.json and video_preprocessor_config.json. transformers 5 writes both
into processor_config.json. If a folder has both files, they must agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torchtune_qwenvl.entries import (
    COUNT,
    LENGTH,
    NUMBERS,
    OBJECT,
    POSITIVE,
    TEXT,
    check_entries,
    list_of,
)
from torchtune_qwenvl.json_files import read_json_if_there

PATCHES = ("patch_size", "temporal_patch_size", "merge_size", "image_mean", "image_std")
SAMPLING = ("fps", "num_frames", "min_frames", "max_frames", "max_duration")
LIMITS = ("min_pixels", "max_pixels")

_NESTED = "processor_config.json"
_FLAT = {"image": "preprocessor_config.json", "video": "video_preprocessor_config.json"}
_KINDS = {
    **dict.fromkeys(("patch_size", "temporal_patch_size", "merge_size"), COUNT),
    "image_mean": NUMBERS,
    "image_std": list_of(POSITIVE),
    **dict.fromkeys((*LIMITS, "shortest_edge", "longest_edge"), LENGTH),
    **dict.fromkeys(("fps", "max_duration", "rescale_factor"), POSITIVE),
    **dict.fromkeys(("num_frames", "min_frames", "max_frames"), COUNT),
    **dict.fromkeys(("video_processor_type", "processor_class"), TEXT),
    "size": OBJECT,
}
_COMPARED = (*PATCHES, *LIMITS, *SAMPLING, "rescale_factor", "video_processor_type")


def read_processor_settings(folder: str | Path, kind: Literal["image", "video"]) -> dict[str, Any] | None:
    """The entries of the folder's image or video processor; None if no file has any.

    `min_pixels` and `max_pixels` are there under these names, or None: files may have them in `size`.

    Raises:
        ValueError: a file is broken, or two files contradict each other.
    """
    nested_path, flat_path = Path(folder) / _NESTED, Path(folder) / _FLAT[kind]
    entry = f"{kind}_processor"
    whole = read_json_if_there(nested_path) or {}
    check_entries(whole, {entry: OBJECT}, str(nested_path))
    nested = _with_limits(whole.get(entry), f"{nested_path} ({entry})")
    flat = _with_limits(read_json_if_there(flat_path), str(flat_path))
    if nested is None or flat is None:
        return nested or flat
    for name in _COMPARED:
        one, other = nested.get(name), flat.get(name)
        if one is not None and other is not None and one != other:
            raise ValueError(
                f"{nested_path} ({entry}) says {name} = {one}, {flat_path} says {other}. Find out which one "
                f"the model was trained with, then correct the other or delete one of the two"
            )
    return nested


def image_statistics(folder: str | Path) -> dict[str, list[float]]:
    """`image_mean` and `image_std` per channel; empty if the folder has no file for images.

    Raises:
        ValueError: as `read_processor_settings`.
    """
    found = read_processor_settings(folder, "image") or {}
    return {name: found[name] for name in ("image_mean", "image_std") if name in found}


def _with_limits(found: Mapping[str, Any] | None, where: str) -> dict[str, Any] | None:
    """The entries, checked; the limits under our names. `where` is the file, for errors."""
    if not found:
        return None
    check_entries(found, _KINDS, where)
    size = found.get("size") or {}
    check_entries(size, _KINDS, f"{where}, size")
    limits = {
        "min_pixels": found.get("min_pixels") or size.get("min_pixels") or size.get("shortest_edge"),
        "max_pixels": found.get("max_pixels") or size.get("max_pixels") or size.get("longest_edge"),
    }
    return {**found, **limits}
