"""The settings of a video transform: sizes of patches, limits of pixels, and how many frames are read."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from torchtune_qwenvl.transforms.errors import BadSample, check_rate
from torchtune_qwenvl.transforms.images.decode import MAX_IMAGE_PIXELS
from torchtune_qwenvl.transforms.videos.open_video import DECODE_TIMEOUT

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
                raise BadSample(f"expected {name} to be a positive integer, got {reprlib.repr(value)}")
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
        if "fps" in given:  # replaces a `num_frames` given for all videos
            given["num_frames"] = None
        return replace(self, **given)
