"""Plan the images and videos of a conversation from their headers: sizes and times, no pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torchtune.data import Message

from torchtune_qwenvl.transforms.chat.chat_format import media_parts
from torchtune_qwenvl.transforms.chat.positions import temporal_positions
from torchtune_qwenvl.transforms.chat.turn_encoder import MediaGrid
from torchtune_qwenvl.transforms.chat.video_format import VideoFormat
from torchtune_qwenvl.transforms.errors import BadSample
from torchtune_qwenvl.transforms.images.image_transform import IMAGE_OPTIONS, ImageTransform, PlannedImage
from torchtune_qwenvl.transforms.videos.video_transform import VIDEO_OPTIONS, PlannedVideo, VideoTransform


@dataclass(frozen=True)
class PlannedMedia:
    """An image or a video that is not decoded yet, its grid for the text, and what it is read from."""

    transform: ImageTransform | VideoTransform
    plan: Any
    grid: MediaGrid
    source: Any = None

    @property
    def n_patches(self) -> int:
        """Number of patches in the encoder."""
        return math.prod(self.transform.grid(self.plan))

    def patches(self) -> tuple[torch.Tensor, tuple[int, int, int]]:
        """Decode and cut into patches [n, values per patch]; also returns the grid (t, rows, columns)."""
        return self.transform.patches(self.plan)


def read_media(media: Sequence[PlannedMedia]) -> dict[str, Any]:
    """The entry `encoder_input["vision"]` of a sample with these images and videos: all are decoded."""
    encoded = [one.patches() for one in media]
    grids = [grid for _, grid in encoded]
    return {
        "images": [patches for patches, _ in encoded],
        "grid_thw": torch.tensor(grids, dtype=torch.int64).reshape(-1, 3),
    }


@dataclass(frozen=True)
class MediaPlanner:
    """Plans the images and videos of conversations.

    Args:
        image, video: the transforms for images and for videos.
        format: how videos are written; with a `patch` format, they need timestamps.
        tokens_per_second: temporal positions per second of a video; None: one per temporal patch.
        no_video: why videos are refused; None: they are accepted.
    """

    image: ImageTransform
    video: VideoTransform
    format: VideoFormat
    tokens_per_second: float | None = None
    no_video: str | None = None

    def __call__(self, messages: Sequence[Message]) -> list[PlannedMedia]:
        """All images and videos, in the order of the text.

        Raises:
            BadSample: one cannot be opened or has invalid options, or the family needs timestamps and a video
                has none.
        """
        plan = {"image": self._image, "video": self._video}
        return [plan[part["type"]](part, where) for where, part in media_parts(messages)]

    def _image(self, part: Mapping[str, Any], where: str) -> PlannedMedia:
        plan: PlannedImage = self.image.plan(part["content"], where=where, **_given(part, IMAGE_OPTIONS))
        return PlannedMedia(self.image, plan, MediaGrid(*self.image.merged_grid(plan)), part["content"])

    def _video(self, part: Mapping[str, Any], where: str) -> PlannedMedia:
        if self.no_video is not None:
            raise BadSample(self.no_video, where=where)
        plan: PlannedVideo = self.video.plan(part["content"], where=where, **_given(part, VIDEO_OPTIONS))
        n_patches, rows, columns = self.video.merged_grid(plan)
        seconds = None if self.tokens_per_second is None else self.video.seconds_per_grid(plan)
        timestamps = () if self.format.patch is None else self.video.timestamps(plan)
        times = temporal_positions(n_patches, seconds, self.tokens_per_second)
        return PlannedMedia(self.video, plan, MediaGrid(rows, columns, times, timestamps), part["content"])


def _given(part: Mapping[str, Any], options: Sequence[str]) -> dict[str, Any]:
    return {name: part[name] for name in options if part.get(name) is not None}
