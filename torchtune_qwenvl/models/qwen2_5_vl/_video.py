"""Qwen2.5-VL's videos: frames at even steps, an even number of them; the images' resize rule for each frame.

Source: transformers' `Qwen2VLVideoProcessor` and `Qwen2_5_VLProcessor`; defaults as there and in
qwen-vl-utils, which reads two frames a second.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from torchtune_qwenvl.models.qwen2_5_vl._sizes import IMAGE_MEAN, IMAGE_STD
from torchtune_qwenvl.transforms.videos.resize import resize_by_frame
from torchtune_qwenvl.transforms.videos.sampling import Clip, not_enough
from torchtune_qwenvl.transforms.videos.settings import VideoSettings
from torchtune_qwenvl.transforms.videos.video_transform import PlannedVideo, VideoTransform


class Qwen2_5_VLVideoTransform(VideoTransform):
    """`VideoTransform` with Qwen2.5-VL's rules: see there.

    `min_pixels` and `max_pixels` are those of one frame. Adds `second_per_grid_ts`, float32 [1]: seconds from
    one temporal patch to the next.
    """

    defaults = VideoSettings(
        patch_size=14,
        temporal_patch_size=2,
        merge_size=2,
        min_pixels=128 * 28 * 28,
        max_pixels=768 * 28 * 28,
        image_mean=IMAGE_MEAN,
        image_std=IMAGE_STD,
        fps=2.0,
        min_frames=4,
        max_frames=768,
    )

    def sample(self, clip: Clip, wanted: VideoSettings) -> Sequence[int]:
        """n frames at even steps from the first one on, n a multiple of T; 90 of 30 a second: 0, 15, …, 75.

        The steps are rounded as in the reference, where the last of n + 1 can be a frame that does not exist
        (17 frames, n = 14: frame 17); that one is left out.
        """
        n = self._count(clip, wanted)
        if not 0 < n <= clip.n_frames:
            raise not_enough(n, clip, wanted)
        numbers = torch.arange(0, clip.n_frames, clip.n_frames / n).int()
        return numbers[numbers < clip.n_frames].tolist()

    def _count(self, clip: Clip, wanted: VideoSettings) -> int:
        size = wanted.temporal_patch_size
        if wanted.num_frames is not None:
            return round(wanted.num_frames / size) * size
        if wanted.fps is None:
            return clip.n_frames
        most = clip.n_frames if wanted.max_frames is None else min(wanted.max_frames, clip.n_frames)
        n = max(clip.n_frames / clip.rate() * wanted.fps, wanted.min_frames or 0)
        return math.floor(min(n, most // size * size) / size) * size

    def resize_to(self, height: int, width: int, n_frames: int, limits: VideoSettings) -> tuple[int, int]:
        return resize_by_frame(height, width, n_frames, limits)

    def about_time(self, video: PlannedVideo) -> dict[str, Any]:
        return {"second_per_grid_ts": torch.tensor([self.seconds_per_grid(video)])}
