"""Rules for choosing the frames of a video that several families share.

Source: transformers' video processors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from torchtune_qwenvl.transforms.errors import BadSample, check_seconds
from torchtune_qwenvl.transforms.videos.settings import VideoSettings


@dataclass(frozen=True)
class Clip:
    """What a sampling rule knows of a video.

    Attributes:
        n_frames: number of frames.
        fps: frames per second; None if unknown.
        seconds: duration; None if unknown.
    """

    n_frames: int
    fps: float | None
    seconds: float | None

    def rate(self) -> float:
        """`fps`; a BadSample if it is unknown."""
        if self.fps is None:
            raise BadSample(
                "the frame rate is unknown, but frames are chosen or marked by their time",
                fix="set source_fps to the frames per second of the source",
            )
        return self.fps

    def duration(self) -> float:
        """`seconds`, or if unknown the number of frames over the rate."""
        return self.seconds or self.n_frames / self.rate()


def all_frames(clip: Clip, wanted: VideoSettings) -> Sequence[int]:
    """Every frame; a BadSample if there are more than `max_frames`."""
    if wanted.max_frames is not None and clip.n_frames > wanted.max_frames:
        raise BadSample(
            f"{clip.n_frames} frames are given, max_frames is {wanted.max_frames}",
            fix="set num_frames or fps to read only some, or raise max_frames",
        )
    return range(clip.n_frames)


def evenly(n_frames: int, n: int) -> list[int]:
    """`n` numbers of `n_frames` frames, evenly spaced from the first to the last."""
    return np.linspace(0, n_frames - 1, n).round().astype(int).tolist()


def within(n: int, clip: Clip, wanted: VideoSettings) -> int:
    """`n` limited to `min_frames`, `max_frames` and the frames that the video has."""
    most = clip.n_frames if wanted.max_frames is None else min(wanted.max_frames, clip.n_frames)
    return min(max(n, wanted.min_frames or 0), most)


def not_enough(n: int, clip: Clip, wanted: VideoSettings) -> BadSample:
    """The error for fewer frames than asked for, or than a temporal patch needs."""
    least = wanted.temporal_patch_size
    if clip.n_frames < least:
        return BadSample(
            f"expected {least} frames or more, got {clip.n_frames}", fix="give a single frame as an image"
        )
    if n < least:
        return BadSample(
            f"only {n} of its {clip.n_frames} frames would be read, expected {least} or more",
            fix="raise num_frames, fps or max_frames",
        )
    return BadSample(f"it has {clip.n_frames} frames, but {n} are wanted", fix="lower num_frames")


def part_between(clip: Clip, start: float | None, end: float | None) -> tuple[int, Clip]:
    """(number of the first frame, the part of `clip`) between two times in seconds."""
    check_seconds("video_start", start)
    check_seconds("video_end", end)
    if start is None and end is None:
        return 0, clip
    last = clip.n_frames - 1
    first = 0 if start is None else math.ceil(start * clip.rate())
    final = last if end is None else min(last, math.floor(end * clip.rate()))
    if not 0 <= first <= final:
        raise BadSample(
            f"no frame between video_start {start} and video_end {end}: it has {clip.n_frames} frames, "
            f"{clip.n_frames / clip.rate():.2f} seconds",
            fix="times are in seconds from the video's start",
        )
    n_frames = final - first + 1
    return first, Clip(n_frames, clip.fps, n_frames / clip.rate())
