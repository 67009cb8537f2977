"""The pieces of a turn: text, special tokens, images and videos, and placeholders for visual tokens."""

from __future__ import annotations

from dataclasses import dataclass

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
