"""Typed content parts and the images that a record brings in a column of its own."""

from collections.abc import Mapping
from typing import Any

from torchtune_qwenvl.transforms.errors import BadSample

IMAGE_KEYS = ("image", "path", "url", "image_url", "base64")
IMAGE_LIMITS = ("min_pixels", "max_pixels", "resized_height", "resized_width")


class ImagePool:
    """The images of a record's ``image`` or ``images`` column, one or a list, handed out in order."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        for column in ("video", "videos"):
            if record.get(column):
                raise BadSample(
                    f"a {column} column: videos are not read", fix="remove the sample or the column"
                )
        one, many = _as_list(record.get("image")), _as_list(record.get("images"))
        if one and many:
            raise BadSample(
                "images in both columns, image and images", fix="keep one of them, or name it in column_map"
            )
        self._images = one or many
        self._taken = 0

    def take(self, where: str, places: str, fix: str) -> Any:
        """The next image; raises :class:`BadSample` where there are more places than images."""
        if self._taken == len(self._images):
            raise BadSample(f"more {places} than the {len(self._images)} image(s)", where=where, fix=fix)
        self._taken += 1
        return self._images[self._taken - 1]

    def take_all(self) -> list[Any]:
        """All images that are left."""
        left, self._taken = self._images[self._taken :], len(self._images)
        return left

    def check_empty(self, places: str, fix: str) -> None:
        """Raises :class:`BadSample` where there are more images than places for them."""
        if self._taken < len(self._images):
            raise BadSample(f"{len(self._images)} image(s), but only {self._taken} {places}", fix=fix)


def parse_part(part: Any, pool: ImagePool, where: str) -> dict[str, Any]:
    """One typed part -> the transform's ``{"type": "text" | "image", "content": ..., limits}``.

    An image names its source by one of ``image | path | url | image_url | base64`` (``image_url`` also as
    ``{"url": ...}``) or takes the next of the pool; ``min_pixels, max_pixels, resized_height,
    resized_width`` (pixels) come along.

    Raises:
        BadSample: an unknown part, two sources, or limits that are no positive whole numbers.
    """
    if not isinstance(part, Mapping):
        raise BadSample(f"expected a typed part (an object), got {type(part).__name__}", where=where)
    # Arrow gives every part the keys of all parts, filled with None.
    part = {key: value for key, value in part.items() if value is not None}
    kind = part.get("type", next((key for key in ("text", *IMAGE_KEYS) if key in part), None))
    if kind == "text":
        text = part.get("text", part.get("content"))
        if not isinstance(text, str):
            raise BadSample(
                f'a text part expects "text" with a string, got {type(text).__name__}', where=where
            )
        return {"type": "text", "content": text}
    if kind in IMAGE_KEYS:
        return {"type": "image", "content": _source(part, pool, where), **_limits(part, where)}
    raise BadSample(f"unknown part type {kind!r}", where=where, fix=f"expected text, {', '.join(IMAGE_KEYS)}")


def _source(part: Mapping[str, Any], pool: ImagePool, where: str) -> Any:
    given = [key for key in IMAGE_KEYS if key in part]
    if len(given) > 1:
        raise BadSample(f"one image with two sources, {' and '.join(given)}", where=where, fix="keep one")
    if not given:
        return pool.take(where, "image parts without a source", f"name one by {', '.join(IMAGE_KEYS)}")
    source = part[given[0]]
    if given[0] == "image_url" and isinstance(source, Mapping):
        source = source.get("url")
    return {"base64": source} if given[0] == "base64" else source


def _limits(part: Mapping[str, Any], where: str) -> dict[str, int]:
    limits = {key: part[key] for key in IMAGE_LIMITS if key in part}
    for key, value in limits.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise BadSample(f"{key} expects a positive whole number of pixels, got {value!r}", where=where)
    if ("resized_height" in limits) != ("resized_width" in limits):
        raise BadSample("expected resized_height and resized_width together, got one of them", where=where)
    if limits.get("min_pixels", 0) > limits.get("max_pixels", float("inf")):
        raise BadSample(
            f"min_pixels {limits['min_pixels']} is above max_pixels {limits['max_pixels']}", where=where
        )
    return limits


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]
