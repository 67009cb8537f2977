"""Draw pages of cards with Pillow: images on the left, text next to them.

┌──────────────────────────────────────┐
│ title                                │
│ ┌───────┐  text, wrapped, coloured   │
│ │ image │  …                         │
│ └───────┘                            │
│ ──────────────────────────────────── │
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from torchtune_qwenvl.pictures.style import FRAME, GREY, PAPER
from torchtune_qwenvl.pictures.text import LINE, Span, draw_lines, height, wrap

WIDTH, MARGIN, GAP = 1800, 60, 36  # pixels
SIZE, TITLE = 24, 34
BOX = 420  # images fit into a square of this side
MAX_IMAGES = 4


@dataclass(frozen=True)
class Card:
    """Images and text; at most the first four images are shown."""

    images: Sequence[Image.Image]
    text: Sequence[Span]


def draw_page(title: Sequence[Span], cards: Sequence[Card], path: Path, max_lines: int = 24) -> None:
    """Write a page of cards as PNG.

    Args:
        title: text above the cards.
        cards: from top to bottom.
        path: the PNG file to write.
        max_lines: maximum lines of text on each card; the rest is cut off.
    """
    heading = wrap(title, WIDTH - 2 * MARGIN, TITLE)
    rows = [_draw_card(card, max_lines) for card in cards]
    total = MARGIN + height(heading, TITLE) + sum(row.height + 2 * GAP for row in rows) + MARGIN // 2
    page = Image.new("RGB", (WIDTH, int(total)), PAPER)
    draw = ImageDraw.Draw(page)
    draw_lines(draw, heading, MARGIN, MARGIN // 2, TITLE)
    y = MARGIN // 2 + height(heading, TITLE) + GAP / 2
    for row in rows:
        draw.line((MARGIN, y, WIDTH - MARGIN, y), fill=FRAME, width=2)
        page.paste(row, (MARGIN, int(y + GAP)))
        y += row.height + 2 * GAP
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path)


def _draw_card(card: Card, max_lines: int) -> Image.Image:
    pictures = [_framed(image, BOX if len(card.images) == 1 else BOX // 2) for image in card.images]
    shown, n_hidden = pictures[:MAX_IMAGES], max(0, len(pictures) - MAX_IMAGES)
    lines = wrap(card.text, WIDTH - 2 * MARGIN - BOX - GAP, SIZE, max_lines)
    tall = _stack_height(shown) + (SIZE * LINE if n_hidden else 0)
    row = Image.new("RGB", (WIDTH - 2 * MARGIN, int(max(tall, height(lines, SIZE), SIZE))), PAPER)
    x = y = 0
    for number, picture in enumerate(shown):
        if number and number % 2 == 0:
            x, y = 0, max(p.height for p in shown[:2]) + 8
        row.paste(picture, (x, y))
        x += BOX // 2 + 4
    draw = ImageDraw.Draw(row)
    if n_hidden:
        more = wrap([Span(f"and {n_hidden} more", GREY)], BOX, SIZE)
        draw_lines(draw, more, 0, tall - SIZE * LINE, SIZE)
    draw_lines(draw, lines, BOX + GAP, 0, SIZE)
    return row


def _stack_height(pictures: Sequence[Image.Image]) -> int:
    """Height of up to four pictures, two in a row."""
    rows = [pictures[at : at + 2] for at in range(0, len(pictures), 2)]
    return sum(max(picture.height for picture in row) for row in rows) + 8 * max(0, len(rows) - 1)


def _framed(image: Image.Image, side: int) -> Image.Image:
    """The image with a thin frame, scaled (up to four times its size) to fit into a square."""
    inner = side - 6
    scale = min(inner / image.width, inner / image.height, 4)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    smooth = Image.Resampling.LANCZOS if scale < 2 else Image.Resampling.NEAREST
    framed = Image.new("RGB", (size[0] + 2, size[1] + 2), FRAME)
    framed.paste(image.convert("RGB").resize(size, smooth), (1, 1))
    return framed
