"""Put boxes and names into the text of messages, where `<bbox>` and `<ref-object>` stand."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torchtune.data import Message

from torchtune_qwenvl.data.records.boxes.fields import OBJECTS
from torchtune_qwenvl.transforms.boxes.writing import BOXES, REF
from torchtune_qwenvl.transforms.errors import BadSample

BOX_TAG, REF_TAG = "<bbox>", "<ref-object>"
_TAGS = re.compile(f"({BOX_TAG}|{REF_TAG})")
_ONLY_BOXES = re.compile(rf"\s*(?:(?:{REF_TAG})?\s*{BOX_TAG}[\s,;]*)+")


@dataclass(frozen=True)
class Objects:
    """A record's objects, checked.

    Attributes:
        refs: texts for `<ref-object>`, in order.
        boxes: coordinates for `<bbox>`, in order: [x1, y1, x2, y2] or [x, y].
        unit: what they count, one of `UNITS`.
        images: number of each box's image.
    """

    refs: list[str] = field(default_factory=list)
    boxes: list[list[float]] = field(default_factory=list)
    unit: str = "pixels"
    images: list[int] = field(default_factory=list)

    def part(self, number: int, label: str | None = None) -> dict[str, Any]:
        """Box `number` as a part of a message."""
        kind = "point" if len(self.boxes[number]) == 2 else "box"
        part = {"type": kind, "content": self.boxes[number], "image": self.images[number], "unit": self.unit}
        return part if label is None else {**part, "label": label}


def place_objects(objects: Objects | None, messages: Sequence[Message]) -> None:
    """Replace the tags in the text of messages by parts with coordinates and names.

    Raises:
        BadSample: tags and objects differ in number.
    """
    tags = _count(messages)
    if objects is None:
        if tag := next((tag for tag, count in tags.items() if count), None):
            raise BadSample(
                f"{tag} in a text, but no column {OBJECTS}",
                fix=f"add {OBJECTS} with the boxes, name it in column_map, or remove the tag",
            )
        return
    _check_counts(tags, objects)
    used = {BOX_TAG: 0, REF_TAG: 0}
    for message in messages:
        _place_in(message, objects, used)


def _place_in(message: Message, objects: Objects, used: dict[str, int]) -> None:
    """Replace the tags of one message; `used` counts what has been taken."""
    texts = [part["content"] for part in message.content if part["type"] == "text"]
    alone = len(texts) == len(message.content) and _ONLY_BOXES.fullmatch("".join(texts)) is not None
    if message.role == "assistant" and alone:
        message.content = [_whole_answer("".join(texts), objects, used)]
        return
    content: list[dict[str, Any]] = []
    for part in message.content:
        pieces = _TAGS.split(part["content"]) if part["type"] == "text" else []
        if len(pieces) < 2:
            content.append(part)
            continue
        for piece in pieces:
            if piece == BOX_TAG:
                content.append(objects.part(_take(used, BOX_TAG)))
            elif piece == REF_TAG:
                content.append({"type": REF, "content": objects.refs[_take(used, REF_TAG)]})
            elif piece:
                content.append({"type": "text", "content": piece})
    message.content = content


def _whole_answer(text: str, objects: Objects, used: dict[str, int]) -> dict[str, Any]:
    """The part of an answer that is nothing but boxes, each with its name in front of it or none."""
    boxes, label, first = [], None, used[BOX_TAG]
    for tag in _TAGS.findall(text):
        if tag == REF_TAG:
            label = objects.refs[_take(used, REF_TAG)]
        else:
            boxes.append(objects.part(_take(used, BOX_TAG), label))
            label = None
    refs = objects.refs
    asked = refs[first : used[BOX_TAG]] if len(refs) == len(objects.boxes) else refs if len(refs) == 1 else []
    return {"type": BOXES, "content": boxes, "asked": asked}


def _take(used: dict[str, int], tag: str) -> int:
    used[tag] += 1
    return used[tag] - 1


def _count(messages: Sequence[Message]) -> dict[str, int]:
    texts = [p["content"] for m in messages for p in m.content if p["type"] == "text"]
    return {tag: sum(text.count(tag) for text in texts) for tag in (BOX_TAG, REF_TAG)}


def _check_counts(tags: Mapping[str, int], objects: Objects) -> None:
    if tags[BOX_TAG] != len(objects.boxes):
        raise BadSample(
            f"{len(objects.boxes)} boxes, but {tags[BOX_TAG]} {BOX_TAG} tags",
            where=OBJECTS,
            fix=f"put one {BOX_TAG} for each box into the text",
        )
    # A name may also be there for its box only, without a place of its own in the text.
    spare = tags[REF_TAG] < len(objects.refs) and len(objects.refs) not in (1, len(objects.boxes))
    if tags[REF_TAG] > len(objects.refs) or spare:
        raise BadSample(
            f"{len(objects.refs)} names in ref, but {tags[REF_TAG]} {REF_TAG} tags",
            where=OBJECTS,
            fix=f"put one {REF_TAG} for each name into the text",
        )
