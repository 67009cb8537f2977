"""Reads the objects of records and puts them into their messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torchtune.data import Message

from torchtune_qwenvl.data.records.boxes.fields import (
    BOXES,
    COLUMNS,
    COMPANIONS,
    FORMAT,
    IMAGES,
    KNOWN,
    LABELS,
    OBJECTS,
    UNIT,
    as_columns,
    boxes_of,
    corners_of,
    found_format,
    is_coco,
    listed_of,
)
from torchtune_qwenvl.data.records.boxes.tags import BOX_TAG, REF_TAG, Objects, place_objects
from torchtune_qwenvl.data.records.text import is_null, lists_in
from torchtune_qwenvl.transforms.boxes.units import check_unit, found_unit
from torchtune_qwenvl.transforms.errors import BadSample

Format = Literal["xyxy", "xywh"]
# Columns that hold an answer, or a whole conversation.
ANSWERS = ("messages", "conversations", "answer", "response", "output", "completion")


@dataclass(frozen=True)
class BoxReader:
    """Reads the boxes of records.

    Args:
        unit: what coordinates count, for records that do not say it: "pixels", "norm1" or "norm1000"; None:
            it is found.
        format: "xyxy" or "xywh" (COCO's), for records that do not say it; None: "xywh" where the labels are
            called category, unless their areas say otherwise, else "xyxy".
        labels: names of the labels that records give as numbers.
        question: asked about records that have objects but no question.

    Raises:
        ValueError: an unknown unit or format.
    """

    unit: str | None = None
    format: Format | None = None
    labels: Sequence[str] = ()
    question: str | None = None

    def __post_init__(self) -> None:
        if self.unit is not None:
            check_unit(self.unit, "box_unit")
        if self.format not in (None, "xyxy", "xywh"):
            raise ValueError(f"box_format: expected xyxy or xywh, got {self.format!r}")

    def place(self, record: Mapping[str, Any], messages: Sequence[Message]) -> None:
        """Replace the tags in the text of messages by parts with coordinates and names.

        Raises:
            BadSample: tags and objects differ in number, or an object is none.
        """
        place_objects(self.objects(record.get(OBJECTS)), messages)

    def objects(self, given: Any) -> Objects | None:
        """The objects of a column `objects`; None if it is empty.

        Raises:
            BadSample: it has another form, or a field that is not known.
        """
        columns = as_columns(given)
        if columns is None:
            return None
        if unknown := [name for name in columns if name not in KNOWN]:
            raise BadSample(
                f"a field {unknown[0]!r} that is not known", where=OBJECTS, fix=f"expected {', '.join(KNOWN)}"
            )
        boxes = [one for name in BOXES for one in boxes_of(columns.get(name), f"{OBJECTS}.{name}")]
        name = next((name for name in LABELS if columns.get(name) is not None), None)
        refs = [self._name(label, f"{OBJECTS}.{name}") for label in _labels(columns.get(name or ""))]
        layout = columns.get(FORMAT) or self.format or found_format(boxes, name, columns.get("area"))
        corners = [corners_of(box, layout, f"{OBJECTS}, box {i}") for i, box in enumerate(boxes)]
        unit = next((columns[key] for key in UNIT if columns.get(key) is not None), self.unit)
        unit = found_unit(corners) if unit is None else check_unit(unit, OBJECTS)
        # COCO's image_id is a number of its own, not that of an image of this conversation.
        keys = IMAGES[1:] if is_coco(name) else IMAGES
        images = listed_of(next((columns[key] for key in keys if columns.get(key) is not None), None))
        if len(images) > len(boxes):
            raise BadSample(f"{len(images)} image numbers for {len(boxes)} boxes", where=OBJECTS)
        return Objects(refs, corners, unit, [*images, *[0] * (len(boxes) - len(images))])

    def complete(self, record: Mapping[str, Any]) -> Mapping[str, Any]:
        """The record with its boxes in `objects`, and with a question and an answer if it has none.

        Raises:
            BadSample: there are no objects to make an answer of.
        """
        boxes = next((name for name in COLUMNS if record.get(name)), None)
        if boxes is not None and not record.get(OBJECTS):
            names = [boxes, *(name for name in COMPANIONS if record.get(name) is not None)]
            rest = {name: value for name, value in record.items() if name not in names}
            record = {**rest, OBJECTS: {name: record[name] for name in names}}
        if not record.get(OBJECTS) or not all(is_null(record.get(name)) for name in ANSWERS):
            return record
        question, answer = self._exchange(record)
        return {**record, "question": question, "answer": answer}

    def _exchange(self, record: Mapping[str, Any]) -> tuple[str, str]:
        objects = self.objects(record.get(OBJECTS))
        if objects is None or not objects.boxes:
            raise BadSample("no objects, so there is no answer", where=OBJECTS, fix="remove the sample")
        tags = (REF_TAG + BOX_TAG) if len(objects.refs) == len(objects.boxes) else BOX_TAG
        kinds = f" of these kinds: {', '.join(self.labels)}" if self.labels else ""
        asked = None if is_null(record.get("question")) else record["question"]
        question = asked or self.question or f"Locate every object in the image{kinds}."
        return question, tags * len(objects.boxes)

    def _name(self, label: Any, where: str) -> str:
        if isinstance(label, str):
            return label
        if isinstance(label, int) and not isinstance(label, bool):
            if 0 <= label < len(self.labels):
                return self.labels[label]
            raise BadSample(
                f"label {label}, of which the name is not known",
                where=where,
                fix=f"set box_labels to the list of names; it has {len(self.labels)}",
            )
        raise BadSample(f"expected a label as text, got {label!r:.50}", where=where, fix="make it a string")


def _labels(given: Any) -> list[Any]:
    """Labels as a list, also of JSON text; a name in brackets, such as "[dog]", is a name."""
    is_json = isinstance(given, str) and given.lstrip().startswith('["')
    return listed_of(lists_in(given, f"{OBJECTS}, labels") if is_json else given)
