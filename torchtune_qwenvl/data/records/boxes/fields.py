"""The column `objects` in any of its forms, as lists of fields."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from torchtune_qwenvl.data.records.text import is_blank, lists_in
from torchtune_qwenvl.transforms.boxes.units import check_coordinates
from torchtune_qwenvl.transforms.errors import BadSample

OBJECTS = "objects"  # the column
BOXES = ("bbox", "bboxes", "bbox_2d", "box", "boxes", "point", "points", "point_2d")
LABELS = ("ref", "label", "labels", "caption", "category", "categories", "category_id")
UNIT, IMAGES, FORMAT = ("bbox_type", "unit"), ("image_id", "image"), "box_format"
# Columns of a record that hold its boxes and what belongs to them, if there is no column `objects`.
COLUMNS = ("bbox", "bboxes")
COMPANIONS = ("ref", "label", "labels", "category", "categories", "bbox_type", FORMAT, "area")
# Fields of COCO's annotations that say nothing about where or what an object is.
_OTHERS = ("id", "bbox_id", "area", "iscrowd", "width", "height", "segmentation")
KNOWN = (*BOXES, *LABELS, *UNIT, *IMAGES, FORMAT, *_OTHERS)


def as_columns(given: Any) -> Mapping[str, Any] | None:
    """Objects in any form as {field: list}: JSON text, a list of objects or of boxes, or fields already."""
    if isinstance(given, str) and given.strip():
        try:
            given = json.loads(given)
        except ValueError as error:
            raise BadSample(f"expected JSON, got {given!r:.50} ({error})", where=OBJECTS) from None
    if given is None or given in ("", [], {}):
        return None
    if isinstance(given, Mapping):
        return {name: value for name, value in given.items() if value is not None}
    if isinstance(given, (list, tuple)) and not any(isinstance(one, Mapping) for one in given):
        return {"bbox": given}
    if not isinstance(given, (list, tuple)) or not all(isinstance(one, Mapping) for one in given):
        raise BadSample(
            f"expected fields such as ref and bbox, or a list of objects, got {given!r:.80}", where=OBJECTS
        )
    return _joined(given)


def _joined(listed: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """[{label, bbox}, …] as {label: […], bbox: […]}; what is said once for all stays one value."""
    columns: dict[str, Any] = {}
    for number, one in enumerate(listed):
        where = f"{OBJECTS}[{number}]"
        places = [name for name in BOXES if one.get(name) is not None]
        if len(places) != 1:
            raise BadSample(f"expected one of {', '.join(BOXES)}, got {', '.join(one)}", where=where)
        boxes = boxes_of(one[places[0]], where)
        columns.setdefault("bbox", []).extend(boxes)
        for name, value in one.items():
            if name in (*UNIT, FORMAT):
                if columns.setdefault(name, value) != value:
                    raise BadSample(f"two different {name}", where=where, fix="use one for all objects")
            elif name not in BOXES and value is not None:
                kept = ("category" if is_coco(name) else "label") if name in LABELS else name
                columns.setdefault(kept, []).extend([value] * len(boxes))
    return columns


def boxes_of(value: Any, where: str) -> list[Any]:
    """A list of boxes, also if there is only one that is not in a list; each may be JSON text."""
    if is_blank(value) and not isinstance(value, (list, tuple)):
        return []
    value = lists_in(value, where)
    if not isinstance(value, (list, tuple)):
        fix = "write [x1, y1, x2, y2], or a list of such boxes"
        raise BadSample(f"expected a list of boxes, got {value!r:.50}", where=where, fix=fix)
    value = [lists_in(one, where) for one in value]
    single = bool(value) and not any(isinstance(one, (list, tuple)) for one in value)
    return [value] if single else list(value)


def listed_of(value: Any) -> list[Any]:
    """A list as it is, anything else as a list of it, None as an empty one."""
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


def is_coco(label: str | None) -> bool:
    """Whether labels of this name are those of COCO's annotations."""
    return label is not None and label.startswith("categor")


def found_format(boxes: Sequence[Any], label: str | None, areas: Any) -> str:
    """ "xywh" for COCO's annotations, unless their areas are those of boxes with two corners; else "xyxy"."""
    if not is_coco(label):
        return "xyxy"
    areas = listed_of(areas)
    if boxes and len(areas) == len(boxes) and all(map(_is_corners_area, boxes, areas)):
        return "xyxy"
    return "xywh"


def _is_corners_area(box: Any, area: Any) -> bool:
    try:
        x1, y1, x2, y2 = box
        return abs((x2 - x1) * (y2 - y1) - area) <= 1e-3 * max(1.0, abs(area)) and x2 > x1 and y2 > y1
    except (TypeError, ValueError):
        return False


def corners_of(box: Any, layout: Any, where: str) -> list[float]:
    """A box as [x1, y1, x2, y2], or a point as it is; raises :class:`BadSample` if it is neither."""
    if layout == "xywh" and isinstance(box, (list, tuple)) and len(box) == 4:
        width, height = check_coordinates([0, 0, *box[2:]], where)[2:]
        x, y = check_coordinates(box[:2], where)
        return [x, y, x + width, y + height]
    if layout not in ("xyxy", "xywh"):
        raise BadSample(f"unknown {FORMAT} {layout!r}", where=where, fix="expected xyxy or xywh")
    return check_coordinates(box, where)
