"""Check by its elements whether a Matroska or WebM file is complete.

libav skips what it cannot parse, up to the next cluster, and loses packets without an error. But elements
fill
the file without gaps: each one starts where the one before ends, and a cluster ends where its last element
ends. If the head of an element is damaged, the following elements do not fit.

    Segment | Tracks | TrackEntry | TrackNumber || Cluster | Timestamp || SimpleBlock || SimpleBlock | ...

An element consists of its name, the length of its content, and its content. The zero bits at the start of
name and length give their number of bytes: RFC 8794 (EBML), RFC 9559 (Matroska).
"""

from __future__ import annotations

import mmap

from torchtune_qwenvl.transforms.errors import BadSample

Bytes = bytes | mmap.mmap
_SEGMENT, _CLUSTER, _TRACK_NUMBER = 0x18538067, 0x1F43B675, 0xD7
# Elements that contain elements: Segment, Cluster, BlockGroup, Tracks, TrackEntry. Others are not opened.
_HOLD_OTHERS = {_SEGMENT, _CLUSTER, 0xA0, 0x1654AE6B, 0xAE}
# SimpleBlock and Block: the number of a track, followed by a packet.
_BLOCKS = {0xA3, 0xA1}


def check_elements(data: Bytes, fix: str) -> None:
    """Check that the file is complete and that every byte belongs to an element.

    Args:
        data: the file's content.
        fix: what to do, for the error message.

    Raises:
        BadSample: the file is cut off or damaged.
    """
    size, at, tracks = len(data), 0, set[int]()
    ends, segment_end = [size], size  # ends of the elements that contain `at`, outermost first
    while at < segment_end:  # what follows the segment is not read
        name, body, end = _element(data, at)
        if name == _SEGMENT:
            segment_end = size if end is None else end
            if segment_end > size:
                raise BadSample(f"its header says {end} bytes, but it has {size}: cut off", fix=fix)
        open_end = end is None and name in (_SEGMENT, _CLUSTER)
        if not name or (body if open_end else end or size + 1) > ends[-1]:
            raise BadSample(f"cut off or damaged at byte {at} of {size}: no valid element there", fix=fix)
        if name == _TRACK_NUMBER:
            tracks.add(int.from_bytes(data[body:end], "big"))
        elif name in _BLOCKS and tracks and _number(data, body)[0] not in tracks:
            raise BadSample(f"damaged at byte {at} of {size}: a packet of an unknown track", fix=fix)
        if name in _HOLD_OTHERS:
            ends += [] if end is None else [end]
        at = body if name in _HOLD_OTHERS else end or size
        while at == ends[-1] and len(ends) > 1:
            ends.pop()


def _element(data: Bytes, at: int) -> tuple[int, int, int | None]:
    """(name, start of the content, end of the content) of an element; name 0: invalid; end None: unknown."""
    name_end = at + 9 - data[at].bit_length()
    if name_end - at > 4 or name_end >= len(data) or not data[name_end]:
        return 0, at, at
    name = int.from_bytes(data[at:name_end], "big")
    length, body = _number(data, name_end)
    unknown = (1 << 7 * (body - name_end)) - 1  # written before the length was known
    return name, body, None if length == unknown else body + length


def _number(data: Bytes, at: int) -> tuple[int, int]:
    """(the number at `at` without the bits that give its width, the position after it)"""
    width = 9 - data[at].bit_length()
    return int.from_bytes(data[at : at + width], "big") & ((1 << 7 * width) - 1), at + width
