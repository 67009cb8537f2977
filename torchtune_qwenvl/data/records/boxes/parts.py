"""Typed parts of messages that are boxes, points or names of objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchtune_qwenvl.data.records.boxes.fields import BOXES as KEYS
from torchtune_qwenvl.data.records.boxes.fields import IMAGES, UNIT
from torchtune_qwenvl.data.records.text import lists_in
from torchtune_qwenvl.transforms.boxes.units import check_coordinates
from torchtune_qwenvl.transforms.boxes.writing import BOXES, REF
from torchtune_qwenvl.transforms.errors import BadSample


def parse_box_part(part: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A typed part of a message: a box, a point, the name of an object, or an answer of boxes.

    Args:
        part: ``{"type": "box", "box": [x1, y1, x2, y2]}``, ``{"type": "point", "point": [x, y]}``, both with
            ``label``, ``image`` and ``unit`` if needed; ``{"type": "ref", "text": "the sheep"}``;
            ``{"type": "boxes", "boxes": [such parts]}``.
        where: the part, for messages.

    Raises:
        BadSample: the part says no coordinates, or has other fields.
    """
    kind = part["type"]
    value = next((part[key] for key in (kind, "content", "text", *KEYS) if part.get(key) is not None), None)
    unit = next((part[key] for key in UNIT if part.get(key) is not None), None)
    if kind == REF:
        if not isinstance(value, str):
            raise BadSample(f"expected a name as text, got {value!r:.50}", where=where)
        return {"type": REF, "content": value}
    if kind == BOXES:
        value = lists_in(value, where)
        if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
            fix = 'write [{"box": [x1, y1, x2, y2]}]'
            raise BadSample(f"expected a list of boxes and points, got {value!r:.50}", where=where, fix=fix)
        inner = [{"type": "point" if "point" in one else "box", **one} for one in value]
        return {
            "type": BOXES,
            "content": [parse_box_part(one, f"{where}[{i}]") for i, one in enumerate(inner)],
        }
    numbers = check_coordinates(lists_in(value, where), where)
    image = next((part[key] for key in IMAGES if part.get(key) is not None), 0)
    found = {"type": kind, "content": numbers, "image": image, "unit": unit, "label": part.get("label")}
    return {name: one for name, one in found.items() if one is not None}
