"""Read the header and the packets of a video file with PyAV. Only one frame is decoded.

That frame gives size and rotation as the decoder sees them. Packets are listed without decoding them: to
count frames if the header does not, to check that the file is complete, and to know which packet has which
frame.
"""

from __future__ import annotations

import io
import mmap
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from torchtune_qwenvl.transforms.errors import BadSample
from torchtune_qwenvl.transforms.images.formats import opened_picture
from torchtune_qwenvl.transforms.videos.matroska import Bytes, check_elements

FIX = "repair or remove the file"
_NO_IMAGE = "give it as an image; an animation as GIF, or as a list of its frames"
# No playlists: these could refer to other files and to addresses.
_OPEN_OPTIONS = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,matroska,webm,avi,gif,mpegts,mpeg,flv,asf,ogg",
}
# Containers whose packets carry their frame's time, whatever the codec.
_TIMED = ("mov", "matroska")

File = str | Path | bytes


def pyav() -> Any:
    """The `av` package, or a ValueError that says how to install it."""
    try:
        import av
    except ImportError:
        raise ValueError("reading video files needs PyAV: pip install 'torchtune_qwenvl[video]'") from None
    return av


class Deadline:
    """A time limit for reading one video; `check` raises a BadSample once it has passed."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._end = seconds, time.monotonic() + seconds

    def check(self) -> None:
        if time.monotonic() > self._end:
            raise BadSample(
                f"reading it takes longer than decode_timeout = {self._seconds:g} seconds",
                fix="raise decode_timeout, cut the video or lower its resolution",
            )


@dataclass(frozen=True)
class VideoHeader:
    """What is known before decoding, see `OpenedVideo`; `rotation` counts quarter turns counterclockwise."""

    n_frames: int
    fps: float | None
    seconds: float | None
    height: int
    width: int
    rotation: int


@dataclass(frozen=True)
class Packets:
    """The packets of a video, in decoding order.

    Attributes:
        times: the time of each packet's frame in the stream's units; None if it is not shown, or has no time.
        keys: whether decoding can start at the packet.
        shown: number of packets whose frame is shown.
        timed: whether frame numbers can be derived from `times`.
    """

    times: list[int | None]
    keys: list[bool]
    shown: int
    timed: bool


@contextmanager
def opened_stream(source: File, threads: int) -> Iterator[tuple[Any, Any]]:
    """Open (container, its video stream); PyAV's errors become BadSample."""
    av = pyav()
    if isinstance(source, bytes):
        file: Any = io.BytesIO(source)
    elif os.path.isfile(source):
        file = f"file:{source}"
    else:
        raise BadSample("no such video file", fix="check the path")
    if not (len(source) if isinstance(source, bytes) else os.path.getsize(source)):
        raise BadSample("0 bytes, expected a video", fix=FIX)
    try:
        # Titles may have any encoding; they are not used.
        with av.open(file, options=_OPEN_OPTIONS, metadata_errors="ignore") as container:
            stream = container.streams.best("video")  # not the cover picture of an album
            if stream is None:
                kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
                raise BadSample(f"expected a video stream in it, found {kinds}", fix=FIX)
            if stream.codec_context is None:
                raise BadSample("a video of a codec that PyAV does not know", fix=FIX)
            if stream.codec_context is None:
                raise BadSample("a codec that is not known here, or a damaged header", fix=FIX)
            stream.codec_context.thread_count = threads
            yield container, stream
    except av.error.FFmpegError as error:
        if kind := _image_kind(source):
            raise BadSample(f"an image ({kind}), expected a video", fix=_NO_IMAGE) from error
        raise BadSample(f"cannot be decoded: {error.strerror}", fix=FIX) from error


def _image_kind(source: File) -> str | None:
    """Pillow's name of an image's format; None if it is not an image, or a GIF (a broken video here)."""
    try:
        with opened_picture(source) as image:
            return image.format if image.format != "GIF" else None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def read_header(source: File, threads: int, deadline: Deadline) -> tuple[VideoHeader, Packets | None]:
    """Read the header; also returns the packets if frames had to be counted, else None.

    Raises:
        BadSample: there is no video, it has no frames, or the container is broken.
    """
    with opened_stream(source, threads) as (container, stream):
        n_frames, rate = _count_in_header(container, stream), stream.average_rate
        frame = _first_frame(stream, deadline)
    packets = None if n_frames else read_packets(source, None, deadline)
    n_frames = n_frames if packets is None else packets.shown
    turns = _quarter_turns(frame.rotation)
    height, width = (frame.width, frame.height) if turns % 2 else (frame.height, frame.width)
    fps, seconds = (float(rate), float(n_frames / rate)) if rate else (None, None)
    return VideoHeader(n_frames, fps, seconds, height, width, turns), packets


def read_packets(source: File, expected: int | None, deadline: Deadline) -> Packets:
    """List the packets.

    Args:
        source: path or bytes.
        expected: number of frames according to the header; None if it does not say.
        deadline: time limit.

    Raises:
        BadSample: the file is cut off or damaged, or the number of frames differs from `expected`.
    """
    times: list[int | None] = []
    keys: list[bool] = []
    with opened_stream(source, 1) as (container, stream):
        hidden, shown = _HIDDEN.get(stream.codec_context.name), 0
        for packet in container.demux(stream):
            deadline.check()
            if not packet.size:
                continue
            if packet.is_corrupt:
                raise BadSample(f"cut off or damaged after frame {shown}", fix=FIX)
            visible = not packet.is_discard and not (hidden and hidden(packet))
            times.append(packet.pts if visible else None)
            keys.append(packet.is_keyframe)
            shown += visible
        _check_whole(container, source, shown, expected)
        known = [number for number in times if number is not None]
        timed = container.format.name.split(",")[0] in _TIMED and len(set(known)) == shown
    return Packets(times, keys, shown, timed)


# VP8 stores frames that are never shown in packets of their own, marked by a bit of the first byte.
_HIDDEN = {"vp8": lambda packet: not memoryview(packet)[0] & 0x10}


def _count_in_header(container: Any, stream: Any) -> int:
    if stream.frames and container.format.name.startswith("mov"):  # an edit list may leave out frames
        return sum(not entry.is_discard for entry in stream.index_entries)
    return stream.frames


def _check_whole(container: Any, source: File, shown: int, expected: int | None) -> None:
    if not shown:
        raise BadSample("a video with no frames", fix=FIX)
    if expected is not None and shown != expected:
        raise BadSample(f"its header says {expected} frames, but it has {shown}: cut off?", fix=FIX)
    # libav reports no error if one of these two containers is cut off or damaged.
    if container.format.name.startswith("matroska"):
        with _mapped(source) as data:
            check_elements(data, FIX)
    if container.format.name == "gif":
        with _mapped(source) as data:
            if not data[max(0, len(data) - 64) :].rstrip(b"\0").endswith(b";"):
                raise BadSample("a GIF without an end: cut off", fix=FIX)


@contextmanager
def _mapped(source: File) -> Iterator[Bytes]:
    if isinstance(source, bytes):
        yield source
        return
    with open(source, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def _first_frame(stream: Any, deadline: Deadline) -> Any:
    """The first frame; the decoder is flushed after key frames, so that it does not wait for more packets."""
    decoder = stream.codec_context
    for packet in stream.container.demux(stream):
        deadline.check()
        for frame in decoder.decode(packet if packet.size else None):
            return frame
        if packet.is_keyframe:
            for frame in decoder.decode(None):
                return frame
            decoder.flush_buffers()
    raise BadSample("a video with no frames", fix=FIX)


def _quarter_turns(degrees: float) -> int:
    turns, rest = divmod(round(degrees), 90)
    if rest:
        raise BadSample(f"its header rotates it by {degrees} degrees", fix="only quarter turns are supported")
    return turns % 4
