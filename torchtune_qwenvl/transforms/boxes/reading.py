"""Find boxes and points in an answer, whichever of the published forms it has, finished or cut off.

{"bbox_2d": [1, 2, 3, 4], "label": "cat"}      JSON objects, alone, in a list, in a code block
<|box_start|>(1,2),(3,4)<|box_end|>            with or without the marks, after a name or alone
[[1,2,3,4],[5,6,7,8]]                          lists of numbers
"""

from __future__ import annotations

import json
import re
from typing import Any

from torchtune_qwenvl.transforms.boxes.convention import BoxConvention
from torchtune_qwenvl.transforms.boxes.places import ImageSize, Place

_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
_OBJECT = re.compile(r"\{[^{}]*\}")
_KEYS = ("bbox_2d", "point_2d", "box_2d")
_CORNERS = re.compile(rf"\({_NUMBER},{_NUMBER}\)(?:\s*,\s*\({_NUMBER},{_NUMBER}\))?")
_LIST = re.compile(rf"\[{_NUMBER},{_NUMBER}(?:,{_NUMBER},{_NUMBER})?\]")
_NAME = re.compile(r"<\|object_ref_start\|>(.*?)<\|object_ref_end\|>\s*(?:<\|box_start\|>)?\s*$", re.DOTALL)
_MARKS = ("<|box_start|>", "<|begin_of_box|>", *(f'"{key}"' for key in _KEYS))


def says_boxes(text: str) -> bool:
    """Whether a text has a mark or a key of boxes, so that its numbers are surely coordinates."""
    return any(mark in text for mark in _MARKS)


def read_places(text: str, convention: BoxConvention, size: ImageSize) -> list[Place]:
    """The boxes and points in a text, in pixels of the original image.

    Args:
        text: an answer, with or without special tokens.
        convention: whose coordinates they are.
        size: of the image they belong to.

    Returns:
        In the order of the text; corners of a box in order; empty if there are none.
    """
    return [convention.place(numbers, size, label) for numbers, label in _found(text)]


def boxes_in(text: str, image: Any, transform: Any) -> list[Place]:
    """The boxes and points in an answer, in pixels of the resized image.

    Args:
        text: the answer with its special tokens.
        image: the resized image; has width and height.
        transform: the model's; one without a convention for boxes gives none.
    """
    convention = getattr(getattr(transform, "write_boxes", None), "convention", None)
    if convention is None:
        return []
    return read_places(text, convention, ImageSize(image.height, image.width, image.height, image.width))


def _found(text: str) -> list[tuple[list[float], str | None]]:
    if objects := [found for match in _OBJECT.finditer(text) if (found := _of_object(match.group()))]:
        return objects
    for pattern in (_CORNERS, _LIST):
        if matches := list(pattern.finditer(text)):
            ends = [0, *(match.end() for match in matches)]
            names = [_name(text[end : match.start()]) for end, match in zip(ends, matches, strict=False)]
            numbers = [[float(n) for n in match.groups() if n is not None] for match in matches]
            return list(zip(numbers, names, strict=True))
    return []


def _of_object(text: str) -> tuple[list[float], str | None] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    numbers = next((value[key] for key in _KEYS if key in value), None)
    if isinstance(numbers, list) and len(numbers) == 1 and isinstance(numbers[0], list):
        numbers = numbers[0]
    if not isinstance(numbers, list) or len(numbers) not in (2, 4) or not all(map(_is_number, numbers)):
        return None
    label = value.get("label")
    return [float(number) for number in numbers], label if isinstance(label, str) else None


def _name(before: str) -> str | None:
    match = _NAME.search(before)
    return match.group(1).strip() if match else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
