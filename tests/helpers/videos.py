"""Encode small video files with PyAV: a moving window over a photograph."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from skimage import data

# name -> (codec, options): containers and codecs for the tests, most of them with B-frames
KINDS = {
    "h264.mp4": ("libx264", {"preset": "veryfast", "g": "12", "bf": "3"}),
    "open_gop.mp4": ("libx264", {"preset": "veryfast", "g": "12", "bf": "3", "x264-params": "open-gop=1"}),
    "h264.avi": ("libx264", {"preset": "veryfast", "g": "12", "bf": "2"}),
    "hevc.mp4": ("libx265", {"preset": "ultrafast", "x265-params": "keyint=10:bframes=3:log-level=none"}),
    "mpeg4.mp4": ("mpeg4", {"g": "10", "bf": "2"}),
    "mpeg4.avi": ("mpeg4", {"g": "10"}),
    "mpeg4_b.avi": ("mpeg4", {"g": "10", "bf": "2"}),
    "vp8.webm": ("libvpx", {"g": "10", "deadline": "realtime", "cpu-used": "8"}),
    "vp9.webm": ("libvpx-vp9", {"g": "10", "deadline": "realtime", "cpu-used": "8"}),
    "h264.mkv": ("libx264", {"preset": "veryfast", "g": "12", "bf": "3"}),
    "mjpeg.avi": ("mjpeg", {}),
    "animation.gif": ("gif", {}),
}
_PIXELS = {"gif": "rgb8", "mjpeg": "yuvj420p"}


def moving(n_frames: int, height: int, width: int, picture: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Yield different frames [h, w, 3] in uint8; from the middle on the picture is upside down."""
    picture = data.astronaut() if picture is None else picture
    for i in range(n_frames):
        turned = picture if i < n_frames // 2 else picture[::-1]
        yield np.roll(turned, (-3 * i, -5 * i), (0, 1))[:height, :width]


def encode(
    path: Path,
    n_frames: int = 40,
    height: int = 48,
    width: int = 64,
    *,
    rate: int | Fraction = 30,
    codec: str | None = None,
    options: dict[str, str] | None = None,
    uneven: bool = False,
    rotation: int = 0,
    container_options: dict[str, str] | None = None,
    picture: np.ndarray | None = None,
    start: int = 0,
) -> Path:
    """Write a video. Codec and options are those of `KINDS` for this name, if not given.

    Args:
        uneven: frames last one, two and three units in turn.
        rotation: degrees by which players rotate it counterclockwise.
        start: time of the first frame, in frames; frames before 0 are cut by an edit list.
    """
    codec, options = (codec, options or {}) if codec else KINDS[path.name]
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, _PIXELS.get(codec, "yuv420p")
        stream.codec_context.thread_count = 1
        if rotation:
            stream.set_display_rotation(rotation)
        time = start
        for i, pixels in enumerate(moving(n_frames, height, width, picture)):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = time, 1 / Fraction(rate)
            time += 1 + i % 3 if uneven else 1
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def decode_all(path: Path) -> list[np.ndarray]:
    """All frames, decoded from the start, as uint8 [h, w, 3] without rotation."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
