"""Which frames of a video are read, and to what size they are resized: settings and shared rules.

Sources: transformers' video processors and, for the pixel budget of a video, qwen-vl-utils.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from torchtune_qwenvl.transforms.errors import BadSample, check_rate, check_seconds
from torchtune_qwenvl.transforms.images.decode import MAX_IMAGE_PIXELS
from torchtune_qwenvl.transforms.images.image import smart_resize, smart_resize_frames
from torchtune_qwenvl.transforms.videos.decode import DECODE_TIMEOUT

SAMPLING_OPTIONS = ("fps", "num_frames", "min_frames", "max_frames")
PIXEL_OPTIONS = ("min_pixels", "max_pixels", "frame_pixels", "total_pixels")


@dataclass(frozen=True)
class VideoSettings:
    """The arguments of a `VideoTransform`; each family has its defaults.

    Attributes:
        patch_size, temporal_patch_size, merge_size: p, T, m.
        min_pixels, max_pixels: limits of the resized area of a frame, or of all frames together (by family).
        frame_pixels: limit for one frame, if `max_pixels` limits all frames together. None: no such limit.
        total_pixels: limit for the whole video, counting T frames as one: (p·m)² pixels are one token. None:
            only `max_pixels` limits the size.
        image_mean, image_std: per channel, for pixels in [0, 1].
        fps: frames to read per second of video; ignored if `num_frames` is given.
        num_frames: frames to read in total.
        min_frames, max_frames: limits of the number of frames, for `fps`.
        dtype: dtype of the patches; uint8 keeps raw pixels.
        max_duration: seconds; a longer video gets as many frames as one of this length (GLM).
        max_frame_pixels: a video with larger frames is refused by its header.
        decode_timeout: seconds that reading one file may take.
        decode_threads: threads of a file's decoder; data workers use one.
    """

    patch_size: int
    merge_size: int
    temporal_patch_size: int
    min_pixels: int
    max_pixels: int
    image_mean: Sequence[float]
    image_std: Sequence[float]
    frame_pixels: int | None = None
    total_pixels: int | None = None
    fps: float | None = None
    num_frames: int | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    max_duration: float | None = None
    dtype: torch.dtype | str = torch.float32
    max_frame_pixels: int = MAX_IMAGE_PIXELS
    decode_timeout: float = DECODE_TIMEOUT
    decode_threads: int = 1

    def __post_init__(self) -> None:
        if self.fps is not None:
            check_rate("fps", self.fps)
        for name in (*SAMPLING_OPTIONS[1:], *PIXEL_OPTIONS):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value <= 0):
                raise BadSample(f"expected {name} to be a positive integer, got {value!r}")
        for low, high in (("min_pixels", "max_pixels"), ("min_frames", "max_frames")):
            least, most = getattr(self, low), getattr(self, high)
            if least is not None and most is not None and least > most:
                raise BadSample(f"{low} {least} is more than {high} {most}", fix="set both")

    def changed(self, options: Mapping[str, Any]) -> VideoSettings:
        """A copy of these settings with the options of one video that are not None.

        Raises:
            BadSample: invalid options.
        """
        given = {name: value for name, value in options.items() if value is not None}
        if "fps" in given and "num_frames" in given:
            raise BadSample("fps and num_frames exclude each other", fix="set one of the two")
        return replace(self, **_without_count(given))


def _without_count(options: dict[str, Any]) -> dict[str, Any]:
    """`fps` given for one video replaces `num_frames` given for all."""
    return {"num_frames": None, **options} if "fps" in options else options


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


def resize_by_frame(height: int, width: int, n_frames: int, limits: VideoSettings) -> tuple[int, int]:
    """Resize as images, with limits per frame and a share of `total_pixels`: Qwen2-VL and Qwen2.5-VL.

    The share is at least 1.05 `min_pixels`, as in qwen-vl-utils.
    """
    most = min(limits.max_pixels, limits.frame_pixels or limits.max_pixels)
    if limits.total_pixels is not None:
        share = limits.total_pixels * limits.temporal_patch_size // n_frames
        most = max(min(most, share), int(limits.min_pixels * 1.05))
    factor = limits.patch_size * limits.merge_size
    return smart_resize(height, width, factor=factor, min_pixels=limits.min_pixels, max_pixels=most)


def resize_by_clip(height: int, width: int, n_frames: int, limits: VideoSettings) -> tuple[int, int]:
    """Resize with limits for all frames of the video together: Qwen3-VL and GLM."""
    size, low, most = limits.temporal_patch_size, limits.min_pixels, limits.max_pixels
    if n_frames < size:
        raise BadSample(
            f"expected {size} frames or more, got {n_frames}", fix="give a single frame as an image"
        )
    if limits.frame_pixels is not None:
        most = max(min(limits.frame_pixels, most // n_frames), int(low * 1.05)) * n_frames
    if limits.total_pixels is not None:
        most = max(min(most, limits.total_pixels * size), int(low * 1.05))
    return smart_resize_frames(
        height,
        width,
        n_frames=n_frames,
        temporal_factor=size,
        factor=limits.patch_size * limits.merge_size,
        min_pixels=low,
        max_pixels=most,
    )


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
