"""Open video files and frames in memory by their headers, and read them one frame at a time.

A video is never in memory as a whole: `OpenedVideo.frames` yields one uint8 frame after the other. Frames in
memory (a list of images, a tensor [t, c, h, w], an array [t, h, w, c]) are opened like images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np
import torch

from torchtune_qwenvl.transforms.errors import BadSample, check_rate
from torchtune_qwenvl.transforms.images.decode import MAX_IMAGE_PIXELS, ImageSource, check_size, open_image
from torchtune_qwenvl.transforms.videos.container import Deadline, read_header, read_packets
from torchtune_qwenvl.transforms.videos.frame_decoder import ToRgb, decode_frames

DECODE_TIMEOUT = 120.0
VideoSource = str | Path | bytes | Sequence[ImageSource] | np.ndarray | torch.Tensor


@dataclass(frozen=True)
class OpenedVideo:
    """A video whose header has been read.

    Attributes:
        where: names it in errors.
        n_frames: number of frames; they are numbered from 0 in presentation order.
        fps: average frames per second; None if unknown.
        seconds: duration; None if unknown.
        height, width: of a decoded frame, after rotation.
        chosen: whether the frames were given one by one, so that they are a selection already.
    """

    where: str
    n_frames: int
    fps: float | None
    seconds: float | None
    height: int
    width: int
    chosen: bool
    _frames: Callable[[Sequence[int]], Iterator[torch.Tensor]]

    def frames(self, indices: Sequence[int]) -> Iterator[torch.Tensor]:
        """Yield the frames with these numbers as uint8 RGB [3, height, width] with channels-last strides.

        Args:
            indices: ascending; a number may repeat.

        Raises:
            BadSample: the video is damaged, or differs from its header.
        """
        try:
            yield from self._frames(indices)
        except BadSample as error:
            raise error.at(self.where) from None


def open_video(
    source: VideoSource,
    *,
    source_fps: float | None = None,
    max_frame_pixels: int = MAX_IMAGE_PIXELS,
    decode_timeout: float = DECODE_TIMEOUT,
    decode_threads: int = 1,
    where: str | None = None,
) -> OpenedVideo:
    """Read the header of `source`.

    Args:
        source: path or bytes of a file (mp4, avi, webm, gif …), a list of frames (each as `open_image` takes
            it), a uint8 tensor [t, 3, h, w] or array [t, h, w, 3].
        source_fps: frames per second; overrides the header, and is needed if there is none.
        max_frame_pixels: a video with larger frames is refused before it is decoded.
        decode_timeout: seconds that reading one file may take.
        decode_threads: threads of the decoder.
        where: location for errors, put before the path.

    Raises:
        BadSample: no video, no frames, frames of several sizes, too many pixels; a file that is missing, cut
            off or damaged.
        ValueError: the source is a file and PyAV is not installed.
    """
    name = str(source) if isinstance(source, str | Path) else f"video given as {type(source).__name__}"
    where = f"{where}, {name}" if where else name
    try:
        if source_fps is not None:
            check_rate("source_fps", source_fps)
        if isinstance(source, str | Path | bytes):
            opened = _open_file(source, where, decode_threads, decode_timeout)
        else:
            opened = _open_frames(source, where, max_frame_pixels)
        check_size(opened.width, opened.height, max_frame_pixels, "max_frame_pixels")
    except BadSample as error:
        raise error.at(where) from None
    if source_fps is None:
        return opened
    return replace(opened, fps=source_fps, seconds=opened.n_frames / source_fps)


def _open_frames(
    source: Sequence[ImageSource] | np.ndarray | torch.Tensor, where: str, max_pixels: int
) -> OpenedVideo:
    if isinstance(source, np.ndarray | torch.Tensor) and source.ndim != 4:
        layout = "[t, 3, h, w]" if isinstance(source, torch.Tensor) else "[t, h, w, 3]"
        raise BadSample(f"expected {layout}, got {list(source.shape)}")
    if len(source) == 0:
        raise BadSample("a video with no frames", fix="give at least one, or leave it out")
    opened = [
        open_image(frame, max_image_pixels=max_pixels, where=f"frame {i}") for i, frame in enumerate(source)
    ]
    sizes = sorted({(frame.height, frame.width) for frame in opened})
    if len(sizes) > 1:
        listed = ", ".join(f"{height} x {width}" for height, width in sizes)
        raise BadSample(f"expected frames of one size, got {listed}")

    def decode(indices: Sequence[int]) -> Iterator[torch.Tensor]:
        for index, repeats in groupby(indices):
            pixels = opened[index].decode()
            yield from (pixels for _ in repeats)

    (height, width), n_frames = sizes[0], len(opened)
    return OpenedVideo(where, n_frames, None, None, height, width, True, decode)


def _open_file(source: str | Path | bytes, where: str, threads: int, seconds: float) -> OpenedVideo:
    header, packets = read_header(source, threads, Deadline(seconds))

    def decode(indices: Sequence[int]) -> Iterator[torch.Tensor]:
        deadline, to_rgb = Deadline(seconds), ToRgb(header.rotation)
        listed = packets or read_packets(source, header.n_frames, deadline)
        frames = decode_frames(source, listed, sorted(set(indices)), threads, deadline)
        for (_, repeats), frame in zip(groupby(indices), frames, strict=True):
            pixels = to_rgb(frame)
            if pixels.shape[1:] != (header.height, header.width):
                raise BadSample(
                    f"its first frame is {header.height} x {header.width}, a later one "
                    f"{pixels.shape[1]} x {pixels.shape[2]}",
                    fix="encode it in one size",
                )
            yield from (pixels for _ in repeats)

    return OpenedVideo(
        where,
        header.n_frames,
        header.fps,
        header.seconds,
        header.height,
        header.width,
        False,
        decode,
    )
