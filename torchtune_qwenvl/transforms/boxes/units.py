"""What a record's coordinates mean, said by a key or found, and the place of the image that they name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torchtune_qwenvl.transforms.boxes.places import ImageSize
from torchtune_qwenvl.transforms.errors import BadSample

# The unit's names -> the number that the far edge of the image has; None: its size in pixels. "real" and
# "norm1" are ms-swift's.
UNITS: dict[str, int | None] = {
    "pixels": None,
    "real": None,
    "norm1": 1,
    "norm1000": 1000,
}
OVERSHOOT = 1.0  # pixels by which a box may leave the image: rounding of the tool that drew it


def check_coordinates(values: Any, where: str) -> list[float]:
    """The numbers of a box [x1, y1, x2, y2] or a point [x, y].

    Raises:
        BadSample: not two or four finite numbers, or a box whose second corner comes before its first.
    """
    numbers = list(values) if isinstance(values, (list, tuple)) else None
    if numbers is None or len(numbers) not in (2, 4) or not all(map(_is_number, numbers)):
        raise BadSample(
            f"expected a box [x1, y1, x2, y2] or a point [x, y] of finite numbers, got {values!r:.80}",
            where=where,
            fix="correct it, or remove it with its tag",
        )
    if len(numbers) == 4 and (numbers[0] > numbers[2] or numbers[1] > numbers[3]):
        raise BadSample(
            f"a box whose right or lower edge comes first, {numbers}",
            where=where,
            fix="write [x1, y1, x2, y2], or set box_format: xywh if these are x, y, width and height",
        )
    return [float(number) for number in numbers]


def check_unit(unit: Any, where: str) -> str:
    """The unit's name if there is such a unit; raise :class:`BadSample` if not."""
    if not isinstance(unit, str) or unit not in UNITS:
        raise BadSample(f"unknown unit of boxes {unit!r}", where=where, fix=f"expected {', '.join(UNITS)}")
    return unit


def found_unit(boxes: Sequence[Sequence[float]]) -> str:
    """ "norm1" if all coordinates lie in 0 .. 1, else "pixels".

    0 .. 1000 is never guessed: for most images such numbers are as likely to be pixels.

    Raises:
        BadSample: there are only the numbers 0 and 1, which mean something in both.
    """
    numbers = {number for box in boxes for number in box}
    if 1 in numbers and numbers <= {0, 1}:
        raise BadSample(
            "boxes with no other coordinates than 0 and 1, which are pixels or the whole image",
            fix="say their unit with bbox_type: pixels or norm1; of all boxes of a data set: box_unit",
        )
    return "norm1" if numbers and all(0 <= number <= 1 for number in numbers) else "pixels"


def in_pixels(numbers: Sequence[float], unit: str, size: ImageSize, where: str) -> tuple[float, ...]:
    """Coordinates in pixels of the original image.

    Raises:
        BadSample: the place leaves the image by more than a pixel.
    """
    sides = (size.width, size.height) * (len(numbers) // 2)
    full = UNITS[unit]
    # A whole is multiplied before it is divided, so that whole pixels stay whole.
    pixels = [n * side / full if full else n for n, side in zip(numbers, sides, strict=True)]
    if any(not -OVERSHOOT <= pixel <= side + OVERSHOOT for pixel, side in zip(pixels, sides, strict=True)):
        fix = "correct it, or say its unit with bbox_type: pixels, norm1 or norm1000; of a data set: box_unit"
        if full is None and all(0 <= number <= 1000 for number in numbers):
            fix = "if it is in thousandths of the image, set bbox_type (or, of all boxes of a data set, "
            fix += "box_unit): norm1000; else correct it"
        raise BadSample(
            f"{list(numbers)} ({unit}) leaves its image of {size.width} x {size.height} pixels (w x h)",
            where=where,
            fix=fix,
        )
    return tuple(max(0.0, min(pixel, float(side))) for pixel, side in zip(pixels, sides, strict=True))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
