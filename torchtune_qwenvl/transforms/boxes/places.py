"""Boxes and points of an image, and the sizes that decide what their coordinates mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class ImageSize:
    """An image before and after the resize, in pixels.

    Attributes:
        height, width: as displayed, with the EXIF orientation applied.
        resized_height, resized_width: as the model sees it.
    """

    height: int
    width: int
    resized_height: int
    resized_width: int

    @classmethod
    def of(cls, plan: Any) -> ImageSize:
        """The sizes of a `PlannedImage`."""
        return cls(plan.opened.height, plan.opened.width, plan.height, plan.width)

    @property
    def resized(self) -> ImageSize:
        """The resized image as one that needs no resize."""
        return ImageSize(self.resized_height, self.resized_width, self.resized_height, self.resized_width)


@dataclass(frozen=True)
class Place:
    """A box (x1, y1, x2, y2) or a point (x, y) in pixels of an image, from its upper left corner.

    Attributes:
        values: the coordinates; pixel i covers i .. i + 1, so a box around the whole image ends at its size.
        label: what is there, if that is said.
        image: number of the image in its conversation.
    """

    values: tuple[float, ...]
    label: str | None = None
    image: int = 0

    @property
    def is_point(self) -> bool:
        return len(self.values) == 2

    def scaled(self, x: float, y: float) -> Place:
        """The place in an image whose width is x times, whose height is y times as large."""
        factors = (x, y) * (len(self.values) // 2)
        scaled = tuple(value * factor for value, factor in zip(self.values, factors, strict=True))
        return replace(self, values=scaled)

    def resized(self, size: ImageSize) -> Place:
        """The place in the resized image."""
        return self.scaled(size.resized_width / size.width, size.resized_height / size.height)


def in_order(values: Sequence[float]) -> tuple[float, ...]:
    """A box's coordinates with the smaller ones first; a point as it is."""
    if len(values) == 2:
        return tuple(values)
    x1, y1, x2, y2 = values
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
