"""How a video is written in tokens.

A chat template writes a video as one placeholder between two marks. What replaces it depends on the family:

    Qwen2-VL, Qwen2.5-VL   <|vision_start|> pad x t·h·w <|vision_end|>
    Qwen3-VL               <|vision_start|> <0.3 seconds> <|vision_start|> pad x h·w <|vision_end|>
                                            <1.3 seconds> ... <|vision_end|>
    GLM-4.1V               <|begin_of_video|> <|begin_of_image|> pad x h·w <|end_of_image|> 0
                                              <|begin_of_image|> ... <|end_of_video|>

t temporal patches, h rows and w columns of merged patches.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torchtune_qwenvl.transforms.chat.pieces import Marks, Piece, Placeholders, Special


@dataclass(frozen=True)
class VideoFormat:
    """How a family writes a video; see the examples above.

    Args:
        marks: start of the whole video, the chat template's placeholder, end.
        patch: the same for every temporal patch; None: `marks` enclose all placeholders in one run.
        before, after: text around a temporal patch, a format string of `seconds` (float) and `whole_seconds`.
    """

    marks: Marks = ("<|vision_start|>", "<|video_pad|>", "<|vision_end|>")
    patch: Marks | None = None
    before: str = ""
    after: str = ""

    @property
    def special_names(self) -> tuple[str, ...]:
        """All special tokens used to write a video."""
        return (*self.marks, *(self.patch or ()))

    @property
    def pattern(self) -> str:
        """Regular expression for a video in decoded text with each run of placeholders reduced to one."""
        start, placeholder, end = map(re.escape, self.marks)
        if self.patch is None:
            return start + placeholder + end
        times = (text.format(seconds=1.5, whole_seconds=1) for text in (self.before, self.after))
        before, after = (re.sub(r"\d+(\\\.\d+)?", r"[\\d.]+", re.escape(text)) for text in times)
        return f"{start}(?:{before}{''.join(map(re.escape, self.patch))}{after})+{end}"

    def expand(self, index: int, n_patches: int, timestamps: Sequence[float]) -> list[Piece]:
        """The pieces of one video.

        Args:
            index: its number among the sample's images and videos.
            n_patches: t.
            timestamps: seconds of every temporal patch; ignored if `patch` is None.
        """
        start, placeholder, end = self.marks
        if self.patch is None:
            return [Special(start), Placeholders(placeholder, index, range(n_patches)), Special(end)]
        inside = [piece for i in range(n_patches) for piece in self._patch(index, i, timestamps[i])]
        return [Special(start), *inside, Special(end)]

    def _patch(self, index: int, i: int, seconds: float) -> list[Piece]:
        assert self.patch is not None
        start, placeholder, end = self.patch
        before, after = (
            text.format(seconds=seconds, whole_seconds=int(seconds)) for text in (self.before, self.after)
        )
        placeholders = Placeholders(placeholder, index, range(i, i + 1))
        return [before, Special(start), placeholders, Special(end), after]


ONE_BLOCK = VideoFormat()
