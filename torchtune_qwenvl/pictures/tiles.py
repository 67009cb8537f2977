"""Draw a query and what it found as a sheet of tiles with Pillow.

┌────────────────────────────────┐
│ title                          │
│ ┌───────┐ ┌───────┐ ┌───────┐  │
│ │ query │ │ 0.912 │ │ 0.874 │  │
│ └───────┘ └───────┘ └───────┘  │
└────────────────────────────────┘
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from torchtune_qwenvl.pictures.style import BLUE, FRAME, GREY, MIST, PAPER
from torchtune_qwenvl.pictures.text import LINE, Span, draw_lines, height, wrap

COLUMNS, SIDE, MARGIN, GAP = 5, 320, 48, 24  # pixels
TEXT, TITLE, LINES = 20, 32, 3


@dataclass(frozen=True)
class Tile:
    """An image with a bold line and a text under it; None for an image that cannot be shown."""

    image: Image.Image | None
    heading: str
    text: str
    marked: bool = False


def draw_tiles(title: str, tiles: Sequence[Tile], path: Path) -> None:
    """Write a sheet of tiles as PNG, row by row.

    Args:
        title: above the tiles.
        tiles: in their order; a marked one has a thick frame.
        path: the PNG file to write.
    """
    columns = max(1, min(COLUMNS, len(tiles)))
    width = max(2 * MARGIN + columns * (SIDE + GAP) - GAP, 900)
    heading = wrap([Span(title, bold=True)], width - 2 * MARGIN, TITLE, 2)
    top = MARGIN + height(heading, TITLE) + GAP
    step = SIDE + (LINES + 1) * TEXT * LINE + GAP
    rows = -(-len(tiles) // columns)
    page = Image.new("RGB", (width, int(top + rows * step + MARGIN // 2)), PAPER)
    draw = ImageDraw.Draw(page)
    draw_lines(draw, heading, MARGIN, MARGIN // 2, TITLE)
    for number, tile in enumerate(tiles):
        x = MARGIN + (number % columns) * (SIDE + GAP)
        _draw(page, draw, tile, x, int(top + number // columns * step))
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path)


def _draw(page: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, x: int, y: int) -> None:
    draw.rectangle((x, y, x + SIDE - 1, y + SIDE - 1), fill=MIST)
    if tile.image is not None:
        image = tile.image.convert("RGB")
        scale = min(SIDE / image.width, SIDE / image.height)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        page.paste(
            image.resize(size, Image.Resampling.LANCZOS),
            (x + (SIDE - size[0]) // 2, y + (SIDE - size[1]) // 2),
        )
    box = (x, y, x + SIDE - 1, y + SIDE - 1)
    draw.rectangle(box, outline=BLUE if tile.marked else FRAME, width=6 if tile.marked else 1)
    words = [Span(tile.heading + "\n", bold=True), Span(tile.text, GREY)]
    draw_lines(draw, wrap(words, SIDE, TEXT, LINES + 1), x, y + SIDE + 4, TEXT)
