"""Typed content parts, and the images and videos that a record lists in separate columns."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torchtune_qwenvl.data.records.boxes import parse_box_part
from torchtune_qwenvl.data.records.columns import Leftovers
from torchtune_qwenvl.data.records.text import is_blank, shown, whole_characters
from torchtune_qwenvl.transforms.boxes.writing import BOX_TYPES
from torchtune_qwenvl.transforms.errors import BadSample
from torchtune_qwenvl.transforms.images.image_transform import IMAGE_OPTIONS
from torchtune_qwenvl.transforms.videos.video_transform import VIDEO_OPTIONS


@dataclass(frozen=True)
class Kind:
    """What records call images, or videos.

    Attributes:
        name: of the kind, in messages and as the type of the transform's part.
        columns: of a record: for one, and for a list.
        keys: name the source in a typed part; they may also be its type.
        options: further keys of a part, passed on to the transform.
        tag: marks a place in a user's text.
    """

    name: str
    columns: tuple[str, str]
    keys: tuple[str, ...]
    options: tuple[str, ...]
    tag: str


_KEYS = ("path", "url", "base64", "content", "value")
IMAGE = Kind("image", ("image", "images"), ("image", "image_url", *_KEYS), IMAGE_OPTIONS, "<image>")
VIDEO = Kind("video", ("video", "videos"), ("video", "video_url", *_KEYS), VIDEO_OPTIONS, "<video>")
KINDS = {kind.name: kind for kind in (IMAGE, VIDEO)}
# The types a part may have. A part without a type is recognised by the first of these among its keys.
_NOT_TYPES = ("content", "value")
_TYPES = {
    **{"text": None, "video": VIDEO, "video_url": VIDEO},
    **{key: IMAGE for key in IMAGE.keys if key not in _NOT_TYPES},
}
_TEXT_KEYS = ("text", "content", "value")


class Pool:
    """The images, or videos, in a record's columns, taken in order.

    A list inside a list of videos is one video given by its frames. An entry may be an object with options:
    ``{"video": ["0.jpg", "1.jpg"], "source_fps": 2}``, ``{"path": "a.mp4", "fps": 1}``. Entries that say
    nothing (null, "", an object of nulls) are none.
    """

    def __init__(self, record: Mapping[str, Any], kind: Kind, leftovers: Leftovers | None = None) -> None:
        self._leftovers = leftovers or Leftovers()
        one, many = (_as_list(record.get(column)) for column in kind.columns)
        if one and many:
            raise BadSample(
                f"{kind.name}s in both columns, {' and '.join(kind.columns)}",
                fix="keep one of them, or name it in column_map",
            )
        self.kind = kind
        self._media = one or many
        self._taken = 0

    def __len__(self) -> int:
        return len(self._media)

    def take(self, where: str, places: str, fix: str) -> dict[str, Any]:
        """The next one as a part; raises :class:`BadSample` if none is left."""
        if self._taken == len(self._media):
            problem = f"more {places} than the {len(self._media)} {self.kind.name}(s)"
            raise BadSample(problem, where=where, fix=fix)
        self._taken += 1
        return self._part(self._media[self._taken - 1])

    def take_all(self) -> list[dict[str, Any]]:
        """All remaining ones, as parts."""
        left, self._taken = self._media[self._taken :], len(self._media)
        return [self._part(one) for one in left]

    def _part(self, entry: Any) -> dict[str, Any]:
        if not isinstance(entry, Mapping):
            return {"type": self.kind.name, "content": entry}
        read = (*_FILE_KEYS, self.kind.name, *self.kind.options)
        self._leftovers.check(entry, read, f"the key of an entry of {self.kind.columns[1]}")
        return {
            "type": self.kind.name,
            "content": entry.get(self.kind.name, entry),
            **_options(entry, self.kind),
        }

    def check_empty(self, places: str, fix: str) -> None:
        """Raise :class:`BadSample` if there are more images or videos than places for them."""
        if self._taken < len(self._media):
            raise BadSample(
                f"{len(self._media)} {self.kind.name}(s), but only {self._taken} {places}", fix=fix
            )


Pools = Mapping[str, Pool]


# What an object that stands for a file may have, see `MediaFinder`.
_FILE_KEYS = ("bytes", "path", "url", "base64")


def open_pools(record: Mapping[str, Any], leftovers: Leftovers | None = None) -> Pools:
    """The record's images and videos, by kind."""
    return {name: Pool(record, kind, leftovers) for name, kind in KINDS.items()}


def parse_part(part: Any, pools: Pools, where: str, leftovers: Leftovers | None = None) -> dict[str, Any]:
    """One typed part -> the transform's ``{"type": "text" | "image" | "video", "content": ..., options}``.

    An image names its source by one of ``image | image_url | path | url | base64 | content | value``;
    ``image_url`` may also be ``{"url": ...}``. A video has ``video | video_url`` instead of the first two,
    and a list is a video given by its frames. A part without a source takes the next one of the pool. Options
    (``min_pixels, max_pixels``, …) are kept. Other keys are noted in `leftovers`.

    Raises:
        BadSample: an unknown part, two sources, or limits of an image that are not positive whole numbers.
    """
    if not isinstance(part, Mapping):
        raise BadSample(f"expected a typed part (an object), got {type(part).__name__}", where=where)
    # Arrow gives every part the keys of all parts, filled with None.
    part = {key: value for key, value in part.items() if value is not None}
    name = part.get("type", next((key for key in _TYPES if key in part), None))
    if isinstance(name, str) and name in BOX_TYPES:
        return parse_box_part(part, where)
    if not isinstance(name, str) or name not in _TYPES:
        raise BadSample(f"unknown part type {shown(name)}", where=where, fix=f"expected {', '.join(_TYPES)}")
    kind = _TYPES[name]
    read = {"type", *(_TEXT_KEYS if kind is None else (*kind.keys, *kind.options, *_RENAMED))}
    (leftovers or Leftovers()).check(part, read, "the key of a part", where)
    if kind is None:
        return {"type": "text", "content": _text_of(part, where)}
    options = _options(part, kind)
    if kind is IMAGE:
        _check_limits(options, where)
    return {**_with_source(part, pools[kind.name], where), **options}


def _text_of(part: Mapping[str, Any], where: str) -> str:
    given = [key for key in _TEXT_KEYS if key in part]
    if len(given) > 1:
        raise BadSample(f"a text part with both {' and '.join(given)}", where=where, fix="keep one of them")
    text = part[given[0]] if given else None
    if not isinstance(text, str):
        raise BadSample(f'a text part expects "text" with a string, got {type(text).__name__}', where=where)
    return whole_characters(text, where)


# qwen-vl-utils has these names. They are refused, since ignoring them would change the video unnoticed.
_RENAMED = {"nframes": "num_frames", "sample_fps": "source_fps"}


def _options(entry: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    if renamed := [name for name in _RENAMED if kind is VIDEO and entry.get(name) is not None]:
        raise BadSample(f"an option {renamed[0]} of a video", fix=f"call it {_RENAMED[renamed[0]]}")
    return {key: entry[key] for key in kind.options if entry.get(key) is not None}


def _with_source(part: Mapping[str, Any], pool: Pool, where: str) -> dict[str, Any]:
    kind = pool.kind
    given = [key for key in kind.keys if key in part]
    if len(given) > 1:
        raise BadSample(
            f"one {kind.name} with two sources, {' and '.join(given)}", where=where, fix="keep one"
        )
    if not given:
        places = f"{kind.name} parts without a source"
        return pool.take(where, places, f"name one by {', '.join(kind.keys)}")
    source = part[given[0]]
    if given[0].endswith("_url") and isinstance(source, Mapping):
        source = source.get("url")
    return {"type": kind.name, "content": {"base64": source} if given[0] == "base64" else source}


def _check_limits(limits: Mapping[str, Any], where: str) -> None:
    for key, value in limits.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise BadSample(
                f"{key} expects a positive whole number of pixels, got {shown(value)}", where=where
            )
    if ("resized_height" in limits) != ("resized_width" in limits):
        raise BadSample("expected resized_height and resized_width together, got one of them", where=where)
    if limits.get("min_pixels", 0) > limits.get("max_pixels", math.inf):
        raise BadSample(
            f"min_pixels {limits['min_pixels']} is above max_pixels {limits['max_pixels']}", where=where
        )


def _as_list(value: Any) -> list[Any]:
    entries = value if isinstance(value, (list, tuple)) else [value]
    return [entry for entry in entries if not is_blank(entry)]
