"""The wanted frames of a video file, one after the other, exactly as decoding from the start gives them.

Frame k is the k-th in presentation order. Where the packets' times say which packet holds it, decoding begins
at the key frame before it and leaves out what no wanted frame is made from:

    packets, in the order of decoding   I0 P3 b1 b2 P6 b4 b5 | I7 P10 b8 b9 | I11 …
    wanted: frames 5 and 12             I0 P3       P6    b5   not read       I11 …

Elsewhere everything is decoded and counted.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from torchtune_qwenvl.transforms.errors import BadSample
from torchtune_qwenvl.transforms.images.rgb import array_to_rgb, hwc_to_chw
from torchtune_qwenvl.transforms.videos.file import FIX, Deadline, File, Packets, opened_stream, pyav

# Codecs whose decoders know the frames that no other is made from, and skip them.
_SKIPS = ("h264", "mpeg4", "mpeg2video", "mpeg1video")
# Packets worth a seek instead of reading over them.
_FAR = 300


@dataclass(frozen=True)
class Run:
    """Packets from a key frame to the last one needed, and the wanted frames' times in presentation order."""

    first: int
    last: int
    times: tuple[int, ...]


class _LostTrack(Exception):
    """What came out of the decoder is not what the packets' times promised."""


def decode_frames(
    source: File, packets: Packets, wanted: Sequence[int], threads: int, deadline: Deadline
) -> Iterator[Any]:
    """PyAV's frames with these numbers.

    Args:
        source: path or bytes.
        packets: as `read_packets` lists them.
        wanted: ascending, each once.
        threads: of the decoder.
        deadline: see there.

    Raises:
        BadSample: a damaged file, or fewer frames come out than its packets promise.
    """
    done = 0
    if packets.timed:
        try:
            for frame in _by_time(source, packets, wanted, threads, deadline):
                yield frame
                done += 1
            return
        except _LostTrack:
            pass
    yield from _by_counting(source, wanted[done:], threads, deadline)


class ToRgb:
    """Frames of PyAV to uint8 RGB [3, h, w], channels-last strides: alpha on white, turned upright.

    One converter for a whole clip, on one thread. `frame.to_ndarray` alone makes one for every frame, with as
    many threads as the machine has cores; starting these takes longer than converting, for the same pixels.

    Args:
        turns: quarter turns counterclockwise.
    """

    def __init__(self, turns: int) -> None:
        self._turns, self._converter = turns, pyav().video.reformatter.VideoReformatter()

    def __call__(self, frame: Any) -> torch.Tensor:
        alpha = any(component.is_alpha for component in frame.format.components)
        converted = self._converter.reformat(frame, format="rgba" if alpha else "rgb24", threads=1)
        values = np.rot90(converted.to_ndarray(), self._turns)
        return array_to_rgb(values) if alpha else hwc_to_chw(np.ascontiguousarray(values))


def plan_runs(packets: Packets, wanted: Sequence[int]) -> list[Run]:
    """What to decode for these frames, ascending; runs that touch are one."""
    order = sorted(time for time in packets.times if time is not None)
    at = {time: number for number, time in enumerate(packets.times) if time is not None}
    keys = [number for number, key in enumerate(packets.keys) if key and packets.times[number] is not None]
    runs: list[Run] = []
    for time in (order[number] for number in wanted):
        first = _key_before(packets.times, keys, at[time])
        if runs and first <= runs[-1].last + 1:
            before = runs.pop()
            runs.append(Run(before.first, max(before.last, at[time]), (*before.times, time)))
        else:
            runs.append(Run(first, at[time], (time,)))
    return runs


def _key_before(times: Sequence[int | None], keys: Sequence[int], number: int) -> int:
    """The last key frame from which this packet's frame can be decoded; 0: the file's beginning.

    A frame behind a key frame in the file but before it in time may be made from what is before both.
    """
    shown = times[number] or 0
    before = (keys[i] for i in reversed(range(bisect_right(keys, number))))
    return next((key for key in before if (times[key] or 0) <= shown), 0)


def _by_time(
    source: File, packets: Packets, wanted: Sequence[int], threads: int, deadline: Deadline
) -> Iterator[Any]:
    with opened_stream(source, threads) as (container, stream):
        reader = _Reader(container, stream, packets)
        skips = stream.codec_context.name in _SKIPS
        for run in plan_runs(packets, wanted):
            found = _decode_run(reader.read(run), stream.codec_context, packets, run, skips, deadline)
            key_time = packets.times[run.first] if run.first else None
            yield from _expect(found, key_time, run.times)


class _Reader:
    """Packets by number, forward or after a seek."""

    def __init__(self, container: Any, stream: Any, packets: Packets) -> None:
        self._container, self._stream, self._packets = container, stream, packets
        self._at = {time: number for number, time in enumerate(packets.times) if time is not None}
        self._next, self._demuxed = 0, container.demux(stream)

    def read(self, run: Run) -> Iterator[tuple[int, Any]]:
        """(number, packet) of the run."""
        if run.first - self._next > _FAR:
            self._seek(run.first)
        for packet in self._demuxed:
            if not packet.size:
                continue
            number, self._next = self._next, self._next + 1
            if number >= run.first:
                yield number, packet
            if number >= run.last:
                return

    def _seek(self, target: int) -> None:
        self._container.seek(self._packets.times[target], stream=self._stream)
        self._demuxed = self._container.demux(self._stream)
        packet = next(self._demuxed)
        number = self._at.get(packet.pts, len(self._at))
        if number > target:
            raise _LostTrack
        self._next = number
        self._demuxed = _behind(packet, self._demuxed)


def _behind(first: Any, rest: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from rest


def _decode_run(
    numbered: Iterator[tuple[int, Any]],
    decoder: Any,
    packets: Packets,
    run: Run,
    skips: bool,
    deadline: Deadline,
) -> Iterator[Any]:
    """All frames that come out of the run; those no wanted frame is made from may be left out."""
    times = set(run.times)
    for number, packet in numbered:
        deadline.check()
        if skips:
            decoder.skip_frame = "DEFAULT" if packets.times[number] in times else "NONREF"
        yield from decoder.decode(packet)
    yield from decoder.decode(None)
    decoder.flush_buffers()


def _expect(frames: Iterator[Any], key_time: int | None, times: Sequence[int]) -> Iterator[Any]:
    """The frames at `times` of those that come.

    Decoding has to begin with a true key frame at `key_time`; None: it begins with the file.
    """
    began, left = key_time is None, list(times)
    for frame in frames:
        began = began or (frame.key_frame and frame.pts == key_time)
        if left and frame.pts == left[0]:
            if not began:
                raise _LostTrack
            left.pop(0)
            yield _sound(frame)
    if left:
        raise _LostTrack


def _by_counting(source: File, wanted: Sequence[int], threads: int, deadline: Deadline) -> Iterator[Any]:
    left = list(wanted)
    with opened_stream(source, threads) as (container, stream):
        count = 0
        for frame in container.decode(stream):
            deadline.check()
            if count == left[0]:
                yield _sound(frame)
                left.pop(0)
            if not left:
                return
            count += 1
        raise BadSample(f"frame {left[0]} is wanted, only {count} can be decoded", fix=FIX)


def _sound(frame: Any) -> Any:
    if frame.is_corrupt:
        at = "" if frame.time is None else f" at {frame.time:.2f} seconds"
        raise BadSample(f"a frame{at} is damaged", fix=FIX)
    return frame
