"""Wrap coloured text into lines of a given width, and draw it into a picture.

The fonts are matplotlib's. A word with characters that they lack, for example Chinese, is set in the first
installed font that has all of them.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from matplotlib import font_manager
from PIL import ImageDraw, ImageFont

from torchtune_qwenvl.pictures.style import GREY, INK

LINE = 1.45  # of the font size
_PIECES = re.compile(r"\n|[^\S\n]+|[^\s\u2e80-\uffef]+|.")  # words, or single Chinese and Japanese characters


@dataclass(frozen=True)
class Span:
    """Text in one style; `back` is its background colour."""

    text: str
    colour: str = INK
    back: str | None = None
    bold: bool = False


Line = list[tuple[float, Span]]  # (x in pixels, span)


def wrap(spans: Sequence[Span], width: float, size: int, max_lines: int | None = None) -> list[Line]:
    """Break spans into lines; after `max_lines` the text is cut off with an ellipsis.

    Args:
        spans: the text.
        width: width of a line in pixels.
        size: font size in pixels.
        max_lines: maximum number of lines; None: no limit.
    """
    lines: list[Line] = [[]]
    x = 0.0
    for piece in (piece for span in spans for piece in _pieces(span, width, size)):
        advance = measure(piece, size)
        if piece.text == "\n" or (x + advance > width and x > 0):
            if max_lines is not None and len(lines) == max_lines:
                lines[-1].append((x, Span(" …", GREY)))
                return lines
            lines.append([])
            x = 0.0
            if not piece.text.strip():
                continue
        lines[-1].append((x, piece))
        x += advance
    return lines


def draw_lines(draw: ImageDraw.ImageDraw, lines: Sequence[Line], x: float, y: float, size: int) -> None:
    """Draw the lines returned by `wrap`, with their upper left corner at (x, y)."""
    for number, line in enumerate(lines):
        top = y + number * size * LINE
        for offset, span in line:
            if span.back is not None:
                box = (x + offset, top, x + offset + measure(span, size), top + size * LINE - 2)
                draw.rectangle(box, fill=span.back)
        for offset, span in line:
            draw.text((x + offset, top + size * 0.1), span.text, fill=span.colour, font=_font(span, size))


def height(lines: Sequence[Line], size: int) -> float:
    """Height of these lines in pixels."""
    return len(lines) * size * LINE


def printable(text: str) -> str:
    """Replace control characters by �, except line feeds."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in text)


def measure(span: Span, size: int) -> float:
    """Width of a span in pixels."""
    return 0 if span.text == "\n" else _font(span, size).getlength(span.text)


def _pieces(span: Span, width: float, size: int) -> Iterator[Span]:
    """Words and spaces; a word longer than a line is split."""
    for text in _PIECES.findall(printable(span.text.replace("\t", "    "))):
        while measure(replace(span, text=text), size) > width and len(text) > 1:
            fits = max(1, int(len(text) * width / measure(replace(span, text=text), size)))
            yield replace(span, text=text[:fits])
            text = text[fits:]
        yield replace(span, text=text)


def _font(span: Span, size: int) -> ImageFont.FreeTypeFont:
    return _load(_file_for(frozenset(span.text), span.bold), size)


@lru_cache
def _load(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size)


@lru_cache(maxsize=4096)
def _file_for(letters: frozenset[str], bold: bool) -> str:
    """The font file for a word: matplotlib's, or the first installed one that has all its characters."""
    own = font_manager.findfont(
        font_manager.FontProperties(family="DejaVu Sans", weight="bold" if bold else "normal")
    )
    needed = {ord(letter) for letter in letters if not letter.isspace()}
    return own if needed <= _letters(own) else next((f for f in _others() if needed <= _letters(f)), own)


@lru_cache
def _letters(file: str) -> frozenset[int]:
    return frozenset(font_manager.get_font(file).get_charmap())


@lru_cache
def _others() -> tuple[str, ...]:
    return tuple(entry.fname for entry in font_manager.fontManager.ttflist if "Mono" not in entry.name)
