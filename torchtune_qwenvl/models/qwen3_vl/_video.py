"""Qwen3-VL's videos: frames from the first to the last, a clip's budget of pixels, seconds in the text.

Source: transformers' `Qwen3VLVideoProcessor` and `Qwen3VLProcessor`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchtune_qwenvl.models.qwen3_vl._sizes import IMAGE_MEAN, IMAGE_STD
from torchtune_qwenvl.transforms.videos.resize import resize_by_clip
from torchtune_qwenvl.transforms.videos.sampling import Clip, evenly, not_enough, within
from torchtune_qwenvl.transforms.videos.settings import VideoSettings
from torchtune_qwenvl.transforms.videos.video_transform import PlannedVideo, VideoTransform


class Qwen3VLVideoTransform(VideoTransform):
    """`VideoTransform` with Qwen3-VL's rules: see there.

    `min_pixels` and `max_pixels` are those of all frames together. Adds `timestamps`: seconds of each
    temporal patch, the mean of its first and last frame's.
    """

    defaults = VideoSettings(
        patch_size=16,
        temporal_patch_size=2,
        merge_size=2,
        min_pixels=128 * 32 * 32,
        max_pixels=768 * 32 * 32,
        image_mean=IMAGE_MEAN,
        image_std=IMAGE_STD,
        fps=2.0,
        min_frames=4,
        max_frames=768,
    )
    sampled_by = ("fps", "min_frames", "max_frames")

    def sample(self, clip: Clip, wanted: VideoSettings) -> Sequence[int]:
        """n frames at even steps from first to last; 90 of 30 a second: 0, 18, 36, 53, 71, 89."""
        n = self._count(clip, wanted)
        if not wanted.temporal_patch_size <= n <= clip.n_frames:
            raise not_enough(n, clip, wanted)
        return evenly(clip.n_frames, n)

    def _count(self, clip: Clip, wanted: VideoSettings) -> int:
        if wanted.num_frames is not None:
            return wanted.num_frames
        n = clip.n_frames if wanted.fps is None else int(clip.n_frames / clip.rate() * wanted.fps)
        return within(n, clip, wanted)

    def resize_to(self, height: int, width: int, n_frames: int, limits: VideoSettings) -> tuple[int, int]:
        return resize_by_clip(height, width, n_frames, limits)

    def about_time(self, video: PlannedVideo) -> dict[str, Any]:
        return {"timestamps": list(self.timestamps(video))}
