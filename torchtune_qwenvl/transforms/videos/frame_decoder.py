"""Decode the wanted frames of a video file, exactly as decoding from the start gives them.

Frame k is the k-th in presentation order. If the packets' times show which packet contains it, decoding
starts at the key frame before it and skips frames that no wanted frame depends on:

    packets in decoding order   I0 P3 b1 b2 P6 b4 b5 | I7 P10 b8 b9 | I11 …
    wanted: frames 5 and 12     I0 P3       P6    b5   not read       I11 …

Otherwise all frames are decoded and counted.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch

from torchtune_qwenvl.transforms.errors import BadSample
from torchtune_qwenvl.transforms.images.rgb import array_to_rgb, hwc_to_chw
from torchtune_qwenvl.transforms.videos.container import FIX, Deadline, File, Packets, opened_stream, pyav

# Codecs whose decoders can skip the frames that no other frame depends on.
_SKIPS = ("h264", "mpeg4", "mpeg2video", "mpeg1video")
# From this many packets on, seeking is faster than reading them.
_FAR = 300


@dataclass(frozen=True)
class Run:
    """Packets from a key frame to the last one needed, and the times of the wanted frames in between."""

    first: int
    last: int
    times: tuple[int, ...]


class _LostTrack(Exception):
    """The decoder's frames do not match the packets' times."""


def decode_frames(
    source: File, packets: Packets, wanted: Sequence[int], threads: int, deadline: Deadline
) -> Iterator[Any]:
    """Yield PyAV's frames with these numbers.

    Args:
        source: path or bytes.
        packets: as `read_packets` lists them.
        wanted: numbers, ascending and without repetition.
        threads: of the decoder.
        deadline: time limit.

    Raises:
        BadSample: the file is damaged, or has fewer frames than packets.
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
    """Convert PyAV's frames to uint8 RGB [3, h, w] with channels-last strides, alpha on white, upright.

    One converter on one thread serves a whole video. `frame.to_ndarray` alone would create one per frame with
    a thread per core, and starting these takes longer than the conversion. The pixels are the same.

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
    """What to decode for these frames (ascending); adjacent runs are joined."""
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
    """The last key frame from which this packet's frame can be decoded; 0: the start of the file.

    A frame that follows a key frame in the file but precedes it in time may depend on frames before both.
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
    """Reads packets by number, forward or after a seek."""

    def __init__(self, container: Any, stream: Any, packets: Packets) -> None:
        self._container, self._stream, self._packets = container, stream, packets
        self._at = {time: number for number, time in enumerate(packets.times) if time is not None}
        self._next, self._demuxed = 0, container.demux(stream)

    def read(self, run: Run) -> Iterator[tuple[int, Any]]:
        """Yield (number, packet) of the run."""
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
        self._demuxed = chain([packet], self._demuxed)


def _decode_run(
    numbered: Iterator[tuple[int, Any]],
    decoder: Any,
    packets: Packets,
    run: Run,
    skips: bool,
    deadline: Deadline,
) -> Iterator[Any]:
    """Decode a run; frames that no wanted frame depends on may be missing."""
    times = set(run.times)
    for number, packet in numbered:
        deadline.check()
        if skips:
            decoder.skip_frame = "DEFAULT" if packets.times[number] in times else "NONREF"
        yield from decoder.decode(packet)
    yield from decoder.decode(None)
    decoder.flush_buffers()


def _expect(frames: Iterator[Any], key_time: int | None, times: Sequence[int]) -> Iterator[Any]:
    """Yield those of `frames` that are at `times`; _LostTrack if one is missing.

    Decoding has to start with a true key frame at `key_time`; None: it starts at the beginning of the file.
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
        raise BadSample(f"frame {left[0]} is wanted, but only {count} frames can be decoded", fix=FIX)


def _sound(frame: Any) -> Any:
    if frame.is_corrupt:
        at = "" if frame.time is None else f" at {frame.time:.2f} seconds"
        raise BadSample(f"a frame{at} is damaged", fix=FIX)
    return frame
