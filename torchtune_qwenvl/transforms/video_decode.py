"""Video files and frames in memory, opened by their headers and read one frame at a time.

A video is never held as a whole: `OpenedVideo.frames` yields one uint8 frame after the other. Frames in
memory (a list of images, a tensor [t, c, h, w], an array [t, h, w, c]) follow the rules of `decode.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from torchtune_qwenvl.transforms.decode import MAX_IMAGE_PIXELS, ImageSource, OpenedImage, open_image
from torchtune_qwenvl.transforms.errors import BadSample

VideoSource = str | Path | bytes | Sequence[ImageSource] | np.ndarray | torch.Tensor


@dataclass(frozen=True)
class OpenedVideo:
    """A video whose header is read.

    Attributes:
        where: names it in errors.
        n_frames: frames in presentation order, numbered from 0.
        fps: frames per second on average; None where nobody says.
        height, width: of a frame as decoded, rotation applied.
        chosen: whether the frames are a selection already, given one by one.
    """

    where: str
    n_frames: int
    fps: float | None
    height: int
    width: int
    chosen: bool
    _frames: Callable[[Sequence[int]], Iterator[torch.Tensor]]

    def frames(self, indices: Sequence[int]) -> Iterator[torch.Tensor]:
        """The frames with these numbers, uint8 RGB [3, height, width], channels-last strides.

        Args:
            indices: ascending; a number may repeat.

        Raises:
            BadSample: the video is damaged, or not what its header says.
        """
        return self._frames(indices)


def open_video(
    source: VideoSource,
    *,
    source_fps: float | None = None,
    max_frame_pixels: int = MAX_IMAGE_PIXELS,
    where: str | None = None,
) -> OpenedVideo:
    """Read the header of `source`.

    Args:
        source: a list of frames (each as `open_image` takes it), a uint8 tensor [t, 3, h, w] or array
            [t, h, w, 3].
        source_fps: frames per second, instead of what the header says or where there is none.
        max_frame_pixels: a video with larger frames is refused before it is decoded.
        where: words for errors, put before the path.

    Raises:
        BadSample: no video, no frames, frames of several sizes, too many pixels.
    """
    name = str(source) if isinstance(source, str | Path) else f"video given as {type(source).__name__}"
    where = f"{where}, {name}" if where else name
    if source_fps is not None and not source_fps > 0:
        raise BadSample(f"source_fps is a positive number, got {source_fps!r}", where=where)
    if isinstance(source, str | Path | bytes):
        raise BadSample("video files are not read yet", where=where)
    if isinstance(source, np.ndarray | torch.Tensor) and source.ndim != 4:
        raise BadSample(
            f"expected a tensor [t, 3, h, w] or an array [t, h, w, 3], got shape {list(source.shape)}",
            where=where,
        )
    return _open_frames(source, source_fps, max_frame_pixels, where)


def _open_frames(
    source: Sequence[ImageSource] | np.ndarray | torch.Tensor,
    fps: float | None,
    max_frame_pixels: int,
    where: str,
) -> OpenedVideo:
    if len(source) == 0:
        raise BadSample("a video with no frames", where=where, fix="give at least one, or leave it out")
    opened = [
        open_image(frame, max_image_pixels=max_frame_pixels, where=f"{where}, frame {number}")
        for number, frame in enumerate(source)
    ]
    sizes = {(frame.height, frame.width) for frame in opened}
    if len(sizes) > 1:
        listed = ", ".join(f"{height} x {width}" for height, width in sorted(sizes))
        raise BadSample(f"expected frames of one size, got {listed}", where=where)
    first: OpenedImage = opened[0]
    return OpenedVideo(
        where,
        len(opened),
        fps,
        first.height,
        first.width,
        chosen=True,
        _frames=lambda indices: (opened[index].decode() for index in indices),
    )
