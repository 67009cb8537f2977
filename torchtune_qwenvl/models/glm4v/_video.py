"""GLM's videos: frames by the clock, a clip's budget of pixels, an even number of frames.

GLM-4.1V reads a frame at each multiple of 1 / fps seconds; GLM-4.6V more of short videos than of long ones.

Sources: transformers' `Glm4vVideoProcessor`, `Glm46VVideoProcessor`, `Glm4vProcessor`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from torchtune_qwenvl.models.glm4v._sizes import IMAGE_MEAN, IMAGE_STD
from torchtune_qwenvl.transforms.videos.resize import resize_by_clip
from torchtune_qwenvl.transforms.videos.sampling import Clip, evenly, not_enough, within
from torchtune_qwenvl.transforms.videos.settings import VideoSettings
from torchtune_qwenvl.transforms.videos.video_transform import PlannedVideo, VideoTransform

# GLM-4.6V: frames per second of videos up to so many seconds; two of them are one temporal patch.
_FPS_BY_SECONDS = ((30, 6.0), (300, 2.0), (math.inf, 1.0))


class GLM4VVideoTransform(VideoTransform):
    """`VideoTransform` with GLM-4.1V's rules: see there.

    `min_pixels` and `max_pixels` are those of all frames together. Adds `timestamps`: seconds of each
    temporal patch, those of its first frame. `num_frames`, `min_frames` and `max_frames`, which the
    reference does not know, take frames at even steps.
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
        max_duration=300.0,
    )
    sampled_by: ClassVar[tuple[str, ...]] = ("fps", "max_duration")

    def sample(self, clip: Clip, wanted: VideoSettings) -> Sequence[int]:
        """The frames by the clock, each once, the last one twice where they are odd."""
        if (wanted.num_frames or 0) > clip.n_frames:
            raise not_enough(wanted.num_frames or 0, clip, wanted)
        frames = [] if wanted.num_frames else sorted(set(self.by_clock(clip, wanted)))
        n = wanted.num_frames or within(len(frames), clip, wanted)
        if n != len(frames):
            frames = evenly(clip.n_frames, n)
        return frames + frames[-1:] * (len(frames) % 2)

    def by_clock(self, clip: Clip, wanted: VideoSettings) -> list[int]:
        """Frame ceil(i · rate / fps) for i = 0, 1, …; as many, spread out, beyond `max_duration`."""
        last, rate, fps = clip.n_frames - 1, clip.rate(), wanted.fps or clip.rate()
        seconds, longest = clip.duration(), wanted.max_duration or math.inf
        if seconds <= longest:
            steps = range(max(math.floor(seconds * fps), 1))
            return [min(last, math.ceil(i * rate / fps)) for i in steps]
        n = int(longest * fps)
        if n >= clip.n_frames:
            return list(range(clip.n_frames))
        return [min(last, math.ceil(t * rate)) for t in np.linspace(0, seconds, n)]

    def resize_to(self, height: int, width: int, n_frames: int, limits: VideoSettings) -> tuple[int, int]:
        return resize_by_clip(height, width, n_frames, limits)

    def timestamps(self, video: PlannedVideo) -> tuple[float, ...]:
        return video.times[:: self.settings.temporal_patch_size]

    def about_time(self, video: PlannedVideo) -> dict[str, Any]:
        return {"timestamps": list(self.timestamps(video))}


class GLM46VVideoTransform(GLM4VVideoTransform):
    """`VideoTransform` with GLM-4.6V's rules: those of `GLM4VVideoTransform`, but for the frames it reads.

    Without `fps` six a second of up to 30 seconds, two of up to five minutes, else one; at most 640.
    """

    defaults = replace(GLM4VVideoTransform.defaults, fps=None, max_frames=640, max_duration=2400.0)
    sampled_by = ()

    def by_clock(self, clip: Clip, wanted: VideoSettings) -> list[int]:
        """The first frame at or behind each multiple of 1 / fps seconds, then made as many as were wanted."""
        rate, seconds = clip.rate(), clip.duration()
        longest = min(seconds, wanted.max_duration or math.inf)
        fps = wanted.fps or next(fps for most, fps in _FPS_BY_SECONDS if longest <= most)
        n = min(int(longest * fps), wanted.max_frames or clip.n_frames)
        frames: list[int] = []
        due = 0.0
        for frame in range(clip.n_frames if clip.n_frames >= n else 0):
            if frame * (1 / rate) >= due:
                frames.append(frame)
                due += 1 / fps
                if due >= int(seconds):
                    break
        first, last = (frames[0], frames[-1]) if frames and len(frames) < n else (0, clip.n_frames - 1)
        return frames if len(frames) == n else np.linspace(first, last, n, dtype=int).tolist()
