"""Turn videos into patches: choose frames, resize, cut T frames into one patch. Keeps one frame in memory.

Families override the methods of `VideoTransform` that choose frames, decide the size and describe time in the
text. Patches are bit-equal to those of transformers' video processors (torchvision backend).

Axes: t temporal patches, n patches, c channels, T frames per patch, p patch side, m merge side.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torchtune.modules.transforms import Transform
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from torchtune_qwenvl.transforms.errors import BadSample
from torchtune_qwenvl.transforms.images.patches import Normalise, cut_patches, pixel_dtype
from torchtune_qwenvl.transforms.images.resize import wanted_size
from torchtune_qwenvl.transforms.videos.open_video import OpenedVideo, VideoSource, open_video
from torchtune_qwenvl.transforms.videos.sampling import Clip, all_frames, part_between
from torchtune_qwenvl.transforms.videos.settings import PIXEL_OPTIONS, SAMPLING_OPTIONS, VideoSettings

VIDEO_OPTIONS = (
    *SAMPLING_OPTIONS,
    *PIXEL_OPTIONS,
    *("resized_height", "resized_width", "source_fps", "video_start", "video_end"),
)


@dataclass(frozen=True)
class PlannedVideo:
    """A video whose header has been read, the frames to read and their size.

    Attributes:
        opened: the video.
        indices: numbers of the frames to read, ascending.
        times: seconds of each; empty if the frame rate is unknown.
        height, width: size after resizing.
        sampled_fps: frames to read per second of video; None if the frame rate is unknown.
    """

    opened: OpenedVideo
    indices: tuple[int, ...]
    times: tuple[float, ...]
    height: int
    width: int
    sampled_fps: float | None


class VideoTransform(Transform):
    """Add `pixel_values_videos`, `video_grid_thw` and the values of `about_time` to `{"video": video}`.

    `pixel_values_videos`: [n, c·T·p·p], normalised with a float `dtype`, raw with uint8. `video_grid_thw`:
    int64 [1, 3], the grid (t, rows, columns) of patches. The last frame is repeated to fill the last patch.

    Args:
        settings: attributes of `VideoSettings` that replace the family's.
    """

    defaults: ClassVar[VideoSettings]
    # The settings that the family's published processor uses; others in a folder's file have no effect.
    sampled_by: ClassVar[tuple[str, ...]] = ("fps", "num_frames", "min_frames", "max_frames")
    # Whether text or positions depend on time, so that the frame rate has to be known.
    needs_time: ClassVar[bool] = True

    def __init__(self, **settings: Any) -> None:
        given = {name: value for name, value in settings.items() if value is not None}
        self.settings = replace(self.defaults, **given)
        self.dtype = pixel_dtype(self.settings.dtype)
        self._normalise = Normalise(self.settings.image_mean, self.settings.image_std)

    @classmethod
    def known(cls, folder: Mapping[str, Any]) -> dict[str, Any]:
        """The settings in a folder's file that this family uses."""
        ignored = {*SAMPLING_OPTIONS, "max_duration"} - {*cls.sampled_by}
        return {name: value for name, value in folder.items() if name not in ignored}

    def __call__(self, sample: Mapping[str, Any], inference: bool = False) -> dict[str, Any]:
        """See the class; `sample` may have the same options as a message's video part."""
        options = {name: sample[name] for name in VIDEO_OPTIONS if name in sample}
        video = self.plan(sample["video"], **options)
        patches, grid = self.patches(video)
        media = {"pixel_values_videos": patches, "video_grid_thw": torch.tensor([grid])}
        return {**sample, **media, **self.about_time(video)}

    @abstractmethod
    def sample(self, clip: Clip, wanted: VideoSettings) -> Sequence[int]:
        """The family's rule: numbers of the frames to read, ascending."""

    @abstractmethod
    def resize_to(self, height: int, width: int, n_frames: int, limits: VideoSettings) -> tuple[int, int]:
        """The family's rule: (height, width) to which frames of this size are resized."""

    def about_time(self, video: PlannedVideo) -> dict[str, Any]:
        """What the family's text or positions need to know about time, under transformers' names."""
        return {}

    def plan(
        self,
        source: VideoSource,
        *,
        fps: float | None = None,
        num_frames: int | None = None,
        min_frames: int | None = None,
        max_frames: int | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        frame_pixels: int | None = None,
        total_pixels: int | None = None,
        resized_height: int | None = None,
        resized_width: int | None = None,
        source_fps: float | None = None,
        video_start: float | None = None,
        video_end: float | None = None,
        where: str | None = None,
    ) -> PlannedVideo:
        """Read the header, choose the frames and decide the size.

        Args:
            source: see `open_video`. Frames given one by one are all read, unless `fps` or `num_frames` is
                given here.
            fps, num_frames, min_frames, max_frames, min_pixels, max_pixels, frame_pixels, total_pixels: for
                this video instead of the transform's, see `VideoSettings`.
            resized_height, resized_width: the wanted size; it is still rounded and limited.
            source_fps: frames per second of the source, if it does not say.
            video_start, video_end: seconds between which frames are read; default: the whole video.
            where: location for errors, put before the path.

        Raises:
            BadSample: see `open_video`; also too few frames and invalid options.
        """
        opened = open_video(
            source,
            source_fps=source_fps,
            max_frame_pixels=self.settings.max_frame_pixels,
            decode_timeout=self.settings.decode_timeout,
            decode_threads=self.settings.decode_threads,
            where=where,
        )
        options = {
            **{"fps": fps, "num_frames": num_frames, "min_frames": min_frames, "max_frames": max_frames},
            **{"min_pixels": min_pixels, "max_pixels": max_pixels},
            **{"frame_pixels": frame_pixels, "total_pixels": total_pixels},
        }
        try:
            wanted = self.settings.changed(options)
            size = wanted_size(opened, resized_height, resized_width)
            take_all = opened.chosen and fps is None and num_frames is None
            whole = Clip(opened.n_frames, opened.fps, opened.seconds)
            first, clip = part_between(whole, video_start, video_end)
            return self._plan(opened, first, clip, size, wanted, take_all)
        except BadSample as error:
            raise error.at(opened.where) from None

    def _plan(
        self,
        opened: OpenedVideo,
        first: int,
        clip: Clip,
        size: tuple[int, int],
        wanted: VideoSettings,
        take_all: bool,
    ) -> PlannedVideo:
        """Choose frames of `clip`, which is `opened` from frame `first` on, and resize them from `size`."""
        if self.needs_time:
            clip.rate()
        chosen = all_frames(clip, wanted) if take_all else self.sample(clip, wanted)
        height, width = self.resize_to(*size, len(chosen), wanted)
        indices = tuple(first + int(index) for index in chosen)
        if clip.fps is None:
            return PlannedVideo(opened, indices, (), height, width, None)
        times = tuple(index / clip.fps for index in indices)
        sampled_fps = len(indices) / clip.n_frames * clip.fps
        return PlannedVideo(opened, indices, times, height, width, sampled_fps)

    def grid(self, video: PlannedVideo) -> tuple[int, int, int]:
        """(t, rows, columns) in patches."""
        side = self.settings.patch_size
        frames = math.ceil(len(video.indices) / self.settings.temporal_patch_size)
        return frames, video.height // side, video.width // side

    def merged_grid(self, video: PlannedVideo) -> tuple[int, int, int]:
        """(t, rows, columns) in merged patches, which become one token each."""
        (frames, rows, columns), merge = self.grid(video), self.settings.merge_size
        return frames, rows // merge, columns // merge

    def seconds_per_grid(self, video: PlannedVideo) -> float:
        """Seconds from one temporal patch to the next: T over the frames read per second."""
        if video.sampled_fps is None:
            raise BadSample("the frame rate is unknown", where=video.opened.where, fix="set source_fps")
        return self.settings.temporal_patch_size / video.sampled_fps

    def timestamps(self, video: PlannedVideo) -> tuple[float, ...]:
        """Seconds of each temporal patch; by default the mean of its first and last frame."""
        size = self.settings.temporal_patch_size
        times = video.times + video.times[-1:] * (-len(video.times) % size)
        return tuple((times[i] + times[i + size - 1]) / 2 for i in range(0, len(times), size))

    def patches(self, video: PlannedVideo) -> tuple[torch.Tensor, tuple[int, int, int]]:
        """Decode frame by frame, resize and cut; returns the patches (see the class) and their grid."""
        (frames, rows, columns), size = self.grid(video), self.settings.temporal_patch_size
        side = self.settings.patch_size
        patches = torch.empty(frames, rows * columns, 3, size, side * side, dtype=self.dtype)
        raw, slot = torch.empty(0), 0
        for slot, raw in enumerate(self._cut_frames(video)):
            self._put(raw, patches[slot // size], slot % size)
        for missing in range(slot + 1, frames * size):
            self._put(raw, patches[missing // size], missing % size)
        return patches.flatten(0, 1).flatten(1), (frames, rows, columns)

    def _cut_frames(self, video: PlannedVideo) -> Iterator[torch.Tensor]:
        """Yield each frame as uint8 [rows·columns, c, p·p]; a repeated frame is cut once."""
        size, settings = [video.height, video.width], self.settings
        previous, raw = -1, torch.empty(0)
        for index, frame in zip(video.indices, video.opened.frames(video.indices), strict=True):
            if index != previous:
                resized = tv.resize(frame, size, interpolation=InterpolationMode.BICUBIC, antialias=True)
                raw = cut_patches(resized, settings.patch_size, settings.merge_size)
                previous = index
            yield raw

    def _put(self, raw: torch.Tensor, patches: torch.Tensor, slot: int) -> None:
        if self.dtype == torch.uint8:
            patches[:, :, slot] = raw
        else:
            self._normalise(raw, patches, slice(slot, slot + 1))
