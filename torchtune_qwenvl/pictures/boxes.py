"""Draw boxes and points into an image, with their labels."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from torchtune_qwenvl.pictures.style import PAPER
from torchtune_qwenvl.pictures.text import LINE, Span, draw_lines, wrap

SHARP = 400  # pixels: a smaller image is enlarged first, so that lines stay thin


@dataclass(frozen=True)
class Mark:
    """A box (x1, y1, x2, y2) or a point (x, y) in pixels of the image."""

    values: tuple[float, ...]
    colour: str
    label: str | None = None


def draw_boxes(image: Image.Image, marks: Sequence[Mark]) -> Image.Image:
    """A copy of the image with boxes and points, the last ones on top; the image itself if there are none.

    Args:
        image: any mode; an image with sides below 400 pixels is enlarged by a whole factor.
        marks: what to draw. A point is a ring.
    """
    if not marks:
        return image
    factor = max(1, SHARP // max(image.size))
    size = (image.width * factor, image.height * factor)
    drawn = image.convert("RGB").resize(size, Image.Resampling.NEAREST)
    draw, thick = ImageDraw.Draw(drawn), max(2, round(max(size) / 150))
    for mark in marks:
        values = tuple(value * factor for value in mark.values)
        if len(values) == 2:
            radius = 3 * thick
            values = (values[0] - radius, values[1] - radius, values[0] + radius, values[1] + radius)
            draw.ellipse(values, outline=mark.colour, width=thick)
        else:
            # Pillow's rectangle includes its last pixel.
            draw.rectangle(
                (values[0], values[1], max(values[0], values[2] - 1), max(values[1], values[3] - 1)),
                outline=mark.colour,
                width=thick,
            )
        if mark.label:
            _write(draw, mark, values, size)
    return drawn


def _write(draw: ImageDraw.ImageDraw, mark: Mark, box: Sequence[float], size: tuple[int, int]) -> None:
    """The label above the box, or inside it where there is no room above."""
    font = max(10, round(max(size) / 28))
    lines = wrap([Span(mark.label or "", PAPER, mark.colour)], size[0], font, 1)
    above = box[1] - font * LINE
    draw_lines(draw, lines, max(0.0, box[0]), above if above >= 0 else max(0.0, box[1]), font)
