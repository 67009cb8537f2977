"""GLM-4.1V's videos: a frame at each multiple of 1 / fps seconds, the images' resize over the whole clip.

Source: transformers' `Glm4vVideoProcessor` and `Glm4vProcessor`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from torchtune_qwenvl.models.glm4v._sizes import IMAGE_MEAN, IMAGE_STD
from torchtune_qwenvl.transforms.video import PlannedVideo, VideoTransform
from torchtune_qwenvl.transforms.video_rules import Clip, VideoSettings, resize_by_clip

MAX_SECONDS = 300  # longer clips get the frames of one this long, spread over all of it


class GLM4VVideoTransform(VideoTransform):
    """`VideoTransform` with GLM-4.1V's rules: see there.

    `min_pixels` and `max_pixels` are those of all frames together. Adds `timestamps`: seconds of each
    temporal patch, those of its first frame.
    """

    defaults = VideoSettings(
        patch_size=14,
        temporal_patch_size=2,
        merge_size=2,
        min_pixels=112 * 112,
        max_pixels=28 * 28 * 2 * 30000,
        image_mean=IMAGE_MEAN,
        image_std=IMAGE_STD,
        fps=2.0,
    )

    def sample(self, clip: Clip, wanted: VideoSettings) -> Sequence[int]:
        """Frame ceil(i · rate / fps) for i = 0, 1, …; each once, the last one twice where they are odd."""
        last, rate, fps = clip.n_frames - 1, clip.rate(), wanted.fps or clip.rate()
        seconds = clip.seconds or clip.n_frames / rate
        n = int(MAX_SECONDS * fps)
        if seconds <= MAX_SECONDS:
            steps = range(max(math.floor(seconds * fps), 1))
            frames = [min(last, math.ceil(i * rate / fps)) for i in steps]
        elif n >= clip.n_frames:
            frames = list(range(clip.n_frames))
        else:
            frames = [min(last, math.ceil(t * rate)) for t in np.linspace(0, seconds, n)]
        frames = sorted(set(frames))
        return frames + frames[-1:] * (len(frames) % 2)

    def resize_to(self, height: int, width: int, n_frames: int, limits: VideoSettings) -> tuple[int, int]:
        return resize_by_clip(height, width, n_frames, limits)

    def timestamps(self, video: PlannedVideo) -> tuple[float, ...]:
        return video.times[:: self.settings.temporal_patch_size]

    def about_time(self, video: PlannedVideo) -> dict[str, Any]:
        return {"timestamps": list(self.timestamps(video))}
