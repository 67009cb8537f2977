"""What a turn is made of: text, special tokens, images and videos, and how a video is written in tokens.

A chat template writes a video as one placeholder between two marks. What stands in its place differs:

    Qwen2-VL, Qwen2.5-VL   <|vision_start|> pad x t·h·w <|vision_end|>
    Qwen3-VL               <|vision_start|> <0.3 seconds> <|vision_start|> pad x h·w <|vision_end|>
                                            <1.3 seconds> ... <|vision_end|>
    GLM-4.1V               <|begin_of_video|> <|begin_of_image|> pad x h·w <|end_of_image|> 0
                                              <|begin_of_image|> ... <|end_of_video|>

t, h, w: temporal patches, rows and columns of merged patches.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

Marks = tuple[str, str, str]  # special tokens before, for one visual token of, and behind a medium


@dataclass(frozen=True)
class Special:
    """A special token of the template."""

    name: str


@dataclass(frozen=True)
class MediaSlot:
    """Where the sample's medium number `index` stands; `kind` is "image" or "video"."""

    kind: str
    index: int


@dataclass(frozen=True)
class Placeholders:
    """Special tokens `name`, one per visual token of the temporal patches `patches` of medium `index`."""

    name: str
    index: int
    patches: range


Piece = str | Special | MediaSlot | Placeholders


@dataclass(frozen=True)
class VideoFormat:
    """How a family writes a video, see the examples above.

    Args:
        marks: around the whole video, with the placeholder of the chat template between them.
        patch: around every temporal patch; None: all of them stand in one run between `marks`.
        before, behind: text around a temporal patch, a format of `seconds` (float) and `whole_seconds`.
    """

    marks: Marks = ("<|vision_start|>", "<|video_pad|>", "<|vision_end|>")
    patch: Marks | None = None
    before: str = ""
    behind: str = ""

    @property
    def special_names(self) -> tuple[str, ...]:
        """Every special token that a video is written with."""
        return (*self.marks, *(self.patch or ()))

    @property
    def pattern(self) -> str:
        """Regular expression of a whole video in decoded text, where each run of placeholders is one."""
        start, placeholder, end = map(re.escape, self.marks)
        if self.patch is None:
            return start + placeholder + end
        times = (text.format(seconds=1.5, whole_seconds=1) for text in (self.before, self.behind))
        before, behind = (re.sub(r"\d+(\\\.\d+)?", r"[\\d.]+", re.escape(text)) for text in times)
        return f"{start}(?:{before}{''.join(map(re.escape, self.patch))}{behind})+{end}"

    def expand(self, index: int, n_patches: int, timestamps: Sequence[float]) -> list[Piece]:
        """The pieces of medium number `index`.

        Args:
            index: of the medium in its sample.
            n_patches: t.
            timestamps: of every temporal patch in seconds; not read where there is no `patch`.
        """
        start, placeholder, end = self.marks
        if self.patch is None:
            return [Special(start), Placeholders(placeholder, index, range(n_patches)), Special(end)]
        inside = [piece for i in range(n_patches) for piece in self._patch(index, i, timestamps[i])]
        return [Special(start), *inside, Special(end)]

    def _patch(self, index: int, i: int, seconds: float) -> list[Piece]:
        assert self.patch is not None
        start, placeholder, end = self.patch
        before, behind = (
            text.format(seconds=seconds, whole_seconds=int(seconds)) for text in (self.before, self.behind)
        )
        placeholders = Placeholders(placeholder, index, range(i, i + 1))
        return [before, Special(start), placeholders, Special(end), behind]


ONE_BLOCK = VideoFormat()
