"""The pieces of a turn: text, special tokens, images and videos, and placeholders for visual tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torchtune_qwenvl.transforms.errors import BadSample

Marks = tuple[str, str, str]  # special tokens of an image or a video: start, placeholder, end


@dataclass(frozen=True)
class Special:
    """A special token of the template."""

    name: str


@dataclass(frozen=True)
class MediaSlot:
    """The place of an image or a video. `kind` is "image" or "video"; `index` counts both in the sample."""

    kind: str
    index: int


@dataclass(frozen=True)
class Placeholders:
    """Tokens `name`, one per visual token, for the temporal patches `patches` of image or video `index`."""

    name: str
    index: int
    patches: range


Piece = str | Special | MediaSlot | Placeholders

# Noncharacters of Unicode, which no text has: they enclose the number of a special token in a joined text.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"
_PLACE = re.compile(f"{_OPEN}(\\d+){_CLOSE}")


def with_text(content: Sequence[Piece], change: Callable[[str], str]) -> list[Piece]:
    """Change an answer's pieces as one string; special tokens in it keep their places.

    Args:
        content: text and special tokens.
        change: gets the text, in which each special token is a few characters that it must keep or leave out.

    Raises:
        BadSample: the text has noncharacters of Unicode where special tokens are.
    """
    specials = [piece for piece in content if isinstance(piece, Special)]
    if not specials:
        return [change("".join(map(str, content)))]
    if any(isinstance(piece, str) and _OPEN in piece for piece in content):
        raise BadSample("U+FDD0, which is no character, in an answer with boxes", fix="remove it")
    numbers = iter(range(len(specials)))
    joined = [piece if isinstance(piece, str) else f"{_OPEN}{next(numbers)}{_CLOSE}" for piece in content]
    pieces = _PLACE.split(change("".join(joined)))
    # Every second one is a number.
    return [specials[int(piece)] if i % 2 else piece for i, piece in enumerate(pieces)]
