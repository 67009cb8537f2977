"""How a family writes boxes and points: the range of the coordinates, and the text around them, as data.

    pixels (100, 50)-(300, 200) of a 640 x 480 image that is resized to 644 x 476, label "cat"

    Qwen2-VL      <|box_start|>(156,104),(469,417)<|box_end|>                    grid=1000
    Qwen2.5-VL    {"bbox_2d": [101, 50, 302, 198], "label": "cat"}               grid=None
    Qwen3-VL      {"bbox_2d": [156, 104, 469, 417], "label": "cat"}              grid=1000
    GLM-4.xV      <|begin_of_box|>[[156,104,469,417]]<|end_of_box|>              grid=1000

The families' own values are in `models/<family>/_boxes.py`, with their sources.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from torchtune_qwenvl.transforms.boxes.places import ImageSize, Place, in_order


@dataclass(frozen=True)
class AnswerForm:
    """An answer that consists of boxes and points. Templates are for `str.format`.

    Attributes:
        box, point: one of them. Fields: the coordinates {x1} {y1} {x2} {y2} or {x} {y}, and {label}.
        label: what {label} becomes if there is a label: {text} as it is, or {json} as a JSON string.
        opening, between, closing: text around and between them.
    """

    box: str
    point: str
    label: str = ""
    opening: str = ""
    between: str = ""
    closing: str = ""


@dataclass(frozen=True)
class BoxConvention:
    """What a family's checkpoints were trained to write.

    Attributes:
        grid: coordinates are whole numbers 0 .. grid across the image; None: pixels of the resized image, of
            which the last one is its size - 1.
        box, point: one that stands in other text, as a template for `str.format`.
        label: the name of an object in other text, with the field {text}.
        plain: an answer that consists of boxes alone.
        labelled: an answer of boxes with labels.
        infers_labels: whether boxes get the labels that the question asks for.
        marks: special tokens in these templates.
    """

    grid: int | None
    box: str
    point: str
    plain: AnswerForm
    labelled: AnswerForm
    label: str = "{text}"
    infers_labels: bool = False
    marks: tuple[str, ...] = ()

    def coordinates(self, place: Place, size: ImageSize) -> list[int]:
        """The numbers that the family writes for a place of the original image.

        In the formula and its order of operations, rounding and clamping this is `convert_to_qwen2vl_format`
        and `convert_to_qwen25vl_format` of QwenLM/Qwen3-VL, qwen-vl-finetune/tools/process_bbox.ipynb.
        """
        sides = (size.width, size.height) * (len(place.values) // 2)
        if self.grid is not None:
            scaled = [value / side * self.grid for value, side in zip(place.values, sides, strict=True)]
            lasts = [self.grid] * len(scaled)
        else:
            new = (size.resized_width, size.resized_height) * (len(place.values) // 2)
            scaled = [v * (n / side) for v, n, side in zip(place.values, new, sides, strict=True)]
            lasts = [n - 1 for n in new]
        return [max(0, min(round(value), last)) for value, last in zip(scaled, lasts, strict=True)]

    def place(self, coordinates: Sequence[float], size: ImageSize, label: str | None = None) -> Place:
        """The inverse of `coordinates`: a place of the original image, corners in order."""
        sides = (size.width, size.height) * (len(coordinates) // 2)
        across = (size.resized_width, size.resized_height) * (len(coordinates) // 2)
        if self.grid is not None:
            across = (self.grid,) * len(coordinates)
        pairs = zip(coordinates, across, sides, strict=True)
        return Place(in_order([value / n * side for value, n, side in pairs]), label)

    def write(self, place: Place, size: ImageSize) -> list[tuple[str, dict[str, str]]]:
        """A place in other text, as (template, its fields)."""
        return [self._filled(place, size, self.box, self.point, "")]

    def write_answer(
        self, places: Sequence[Place], sizes: Sequence[ImageSize], asked: Sequence[str] = ()
    ) -> list[tuple[str, dict[str, str]]]:
        """An answer of nothing but places, as (template, its fields) pieces.

        Args:
            places: with labels if the answer says them.
            sizes: of the images of the conversation.
            asked: the labels that the question asks for: one for all places, or one for each.
        """
        if self.infers_labels and not any(place.label for place in places):
            labels = list(asked) * (len(places) if len(asked) == 1 else 1)
            if len(labels) == len(places):
                places = [Place(p.values, label, p.image) for p, label in zip(places, labels, strict=True)]
        form = self.labelled if any(place.label for place in places) else self.plain
        pieces = [
            self._filled(place, sizes[place.image], form.box, form.point, form.label) for place in places
        ]
        separated = [piece for one in pieces for piece in ((form.between, {}), one)][1:]
        return [(form.opening, {}), *separated, (form.closing, {})]

    def _filled(
        self, place: Place, size: ImageSize, box: str, point: str, label: str
    ) -> tuple[str, dict[str, str]]:
        names = ("x", "y") if place.is_point else ("x1", "y1", "x2", "y2")
        numbers = self.coordinates(place, size)
        fields = {name: str(number) for name, number in zip(names, numbers, strict=True)}
        template = point if place.is_point else box
        if place.label is None or not label:
            return template.replace("{label}", ""), fields
        fields |= {"text": place.label, "json": json.dumps(place.label, ensure_ascii=False)}
        return template.replace("{label}", label), fields
