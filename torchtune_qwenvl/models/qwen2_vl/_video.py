"""Qwen2-VL's videos: Qwen2.5-VL's rules, but nothing in its text or positions tells the time.

Source: transformers' `Qwen2VLVideoProcessor`.
"""

from __future__ import annotations

from typing import Any

from torchtune_qwenvl.models.qwen2_5_vl._video import Qwen2_5_VLVideoTransform
from torchtune_qwenvl.transforms.videos.video_transform import PlannedVideo


class Qwen2VLVideoTransform(Qwen2_5_VLVideoTransform):
    """`VideoTransform` with Qwen2-VL's rules: those of `Qwen2_5_VLVideoTransform`, without seconds."""

    needs_time = False

    def about_time(self, video: PlannedVideo) -> dict[str, Any]:
        return {}
