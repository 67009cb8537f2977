"""Replace the box parts of messages by text and marks, when the sizes of the images are known.

    {"type": "box", "content": [x1, y1, x2, y2]}     one in other text
    {"type": "point", "content": [x, y]}             the same for a point
    {"type": "ref", "content": "the sheep"}          the name of an object in other text
    {"type": "boxes", "content": [parts]}            an answer that consists of boxes and points

A `box` and a `point` in other text become coordinates alone. An answer of nothing but boxes and points with
labels is taken for `boxes`.

A box and a point may have `label`, `image` (number of the image in the conversation, default 0) and `unit`
(`UNITS`; default: found). `boxes` may have `asked`, the labels that the question asks for.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torchtune.data import Message

from torchtune_qwenvl.transforms.boxes.convention import BoxConvention
from torchtune_qwenvl.transforms.boxes.places import ImageSize, Place
from torchtune_qwenvl.transforms.boxes.units import check_coordinates, check_unit, found_unit, in_pixels
from torchtune_qwenvl.transforms.errors import BadSample

REF, BOXES = "ref", "boxes"
BOX_TYPES = ("box", "point", REF, BOXES)
MARK = "mark"  # type of a part that is one special token


def has_boxes(messages: Sequence[Message]) -> bool:
    """Whether any message has a part of `BOX_TYPES`."""
    return any(part.get("type") in BOX_TYPES for message in messages for part in message.content)


class BoxWriter:
    """Writes boxes in a family's convention.

    Args:
        convention: the family's; None: it has none, boxes are refused.
    """

    def __init__(self, convention: BoxConvention | None) -> None:
        self.convention = convention
        marks = convention.marks if convention else ()
        self._marks = re.compile(f"({'|'.join(map(re.escape, marks))})") if marks else None

    def __call__(
        self, messages: Sequence[Message], sizes: Sequence[ImageSize]
    ) -> tuple[list[Message], list[Place]]:
        """Messages without box parts, and the places that they had, in pixels of the original images.

        Args:
            messages: the conversation.
            sizes: of its images, in order, videos not counted.

        Raises:
            BadSample: no convention, a place without an image or outside it, or a part that is none.
        """
        written, places, found_in_all = [], list[Place](), _unit(messages)
        for number, message in enumerate(messages):
            content = []
            for index, part in enumerate(_as_whole_answer(message)):
                if part.get("type") not in BOX_TYPES:
                    content.append(part)
                    continue
                where = f"message {number}, part {index}"
                parts, found = self._written(part, sizes, where, found_in_all)
                content += parts
                places += found
            changed = copy.copy(message)
            changed.content = content
            written.append(changed)
        return written, places

    def _written(
        self, part: Mapping[str, Any], sizes: Sequence[ImageSize], where: str, unit: str
    ) -> tuple[list[dict[str, Any]], list[Place]]:
        if self.convention is None:
            raise BadSample(
                "a box, but this model's family has no convention for boxes",
                where=where,
                fix="write it as text",
            )
        if part["type"] == REF:
            return self._parts([(self.convention.label, {"text": part["content"]})]), []
        if part["type"] == BOXES:
            listed, asked = part["content"], part.get("asked") or ()
            if not listed:
                raise BadSample("an empty list of boxes", where=where, fix="write the answer as text")
            places = [_place(one, sizes, f"{where}, box {i}", unit) for i, one in enumerate(listed)]
            return self._parts(self.convention.write_answer(places, sizes, asked)), places
        place = _place(part, sizes, where, unit)
        if place.label is not None:
            kind = part["type"]
            raise BadSample(
                f"the label {place.label!r:.50} of a {kind} in other text, which gets only coordinates",
                where=where,
                fix='write it as text or as {"type": "ref"}, or make the answer one {"type": "boxes"}',
            )
        return self._parts(self.convention.write(place, sizes[place.image])), [place]

    def _parts(self, filled: Sequence[tuple[str, Mapping[str, str]]]) -> list[dict[str, Any]]:
        """Templates and their fields as parts. A template's marks become tokens, not those in a label."""
        parts: list[dict[str, Any]] = []
        for template, fields in filled:
            for piece in self._marks.split(template) if self._marks else [template]:
                if self.convention and piece in self.convention.marks:
                    parts.append({"type": MARK, "content": piece})
                elif text := piece.format(**fields):
                    parts.append({"type": "text", "content": text})
        return parts


def _as_whole_answer(message: Message) -> list[dict[str, Any]]:
    """The parts of a message; an answer of nothing but boxes with labels is one part of type `boxes`."""
    parts: list[dict[str, Any]] = message.content
    only_boxes = all(part.get("type") in ("box", "point") for part in parts)
    if message.role == "assistant" and only_boxes and any(part.get("label") for part in parts):
        return [{"type": BOXES, "content": parts}]
    return parts


def _unit(messages: Sequence[Message]) -> str:
    """The unit of the boxes that do not say it, found from all of them together."""
    parts = [part for message in messages for part in message.content]
    listed = [one for part in parts if part.get("type") == BOXES for one in part["content"]]
    open_ones = [part for part in (*parts, *listed) if part.get("type") in ("box", "point")]
    numbers = [check_coordinates(p.get("content"), "a box") for p in open_ones if p.get("unit") is None]
    return found_unit(numbers)


def _place(part: Mapping[str, Any], sizes: Sequence[ImageSize], where: str, unit_of_others: str) -> Place:
    numbers = check_coordinates(part.get("content"), where)
    if (part.get("type") == "point") != (len(numbers) == 2):
        raise BadSample(
            f"a part of type {part.get('type')} with {len(numbers)} numbers",
            where=where,
            fix="a box has four, a point two",
        )
    unit = unit_of_others if part.get("unit") is None else check_unit(part["unit"], where)
    image, label = part.get("image", 0), part.get("label")
    if isinstance(image, bool) or not isinstance(image, int) or not 0 <= image < len(sizes):
        raise BadSample(
            f"a box of image {image!r}, but the conversation has {len(sizes)} image(s), counted from 0",
            where=where,
            fix="correct the number, or add the image",
        )
    if label is not None and not isinstance(label, str):
        raise BadSample(f"expected a label as text, got {label!r:.50}", where=where)
    return Place(in_pixels(numbers, unit, sizes[image], where), label or None, image)
