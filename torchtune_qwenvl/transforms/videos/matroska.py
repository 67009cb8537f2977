"""Whether a Matroska or WebM file is whole, by its elements alone.

libav reads over what it does not understand, up to the next cluster, and packets are lost without a word. But
elements tile a file: each begins where the one before it ends, and a cluster ends where its last one does.
Behind damage to the head of an element nothing fits.

    Segment | Tracks | TrackEntry | TrackNumber || Cluster | Timestamp || SimpleBlock || SimpleBlock | ...

An element is its name, the length of its content, its content. Both numbers begin with zero bits that say how
many bytes they have: RFC 8794 (EBML), RFC 9559 (Matroska).
"""

from __future__ import annotations

import mmap

from torchtune_qwenvl.transforms.errors import BadSample

Bytes = bytes | mmap.mmap
_SEGMENT, _CLUSTER, _TRACK_NUMBER = 0x18538067, 0x1F43B675, 0xD7
# Elements made of elements: Segment, Cluster, BlockGroup, Tracks, TrackEntry. Others are not looked into.
_HOLD_OTHERS = {_SEGMENT, _CLUSTER, 0xA0, 0x1654AE6B, 0xAE}
# SimpleBlock and Block: a packet, behind the number of its track.
_BLOCKS = {0xA3, 0xA1}


def check_elements(data: Bytes, fix: str) -> None:
    """Raise a BadSample where the file is cut off, or a byte belongs to no element.

    Args:
        data: the file.
        fix: what to do, for the error.
    """
    size, at, tracks = len(data), 0, set[int]()
    ends, segment_end = [size], size  # of the elements around `at`, outermost first
    while at < segment_end:  # what may stand behind the segment is not read
        name, body, end = _element(data, at)
        if name == _SEGMENT:
            segment_end = size if end is None else end
            if segment_end > size:
                raise BadSample(f"its header says {end} bytes, it has {size}: cut off", fix=fix)
        open_end = end is None and name in (_SEGMENT, _CLUSTER)
        if not name or (body if open_end else end or size + 1) > ends[-1]:
            raise BadSample(f"cut off or damaged at byte {at} of {size}: no element fits there", fix=fix)
        if name == _TRACK_NUMBER:
            tracks.add(int.from_bytes(data[body:end], "big"))
        elif name in _BLOCKS and tracks and _number(data, body)[0] not in tracks:
            raise BadSample(f"damaged at byte {at} of {size}: a packet of no known track", fix=fix)
        if name in _HOLD_OTHERS:
            ends += [] if end is None else [end]
        at = body if name in _HOLD_OTHERS else end or size
        while at == ends[-1] and len(ends) > 1:
            ends.pop()


def _element(data: Bytes, at: int) -> tuple[int, int, int | None]:
    """(its name, where its content begins, where that ends); name 0: none; end None: nobody says."""
    behind = at + 9 - data[at].bit_length()
    if behind - at > 4 or behind >= len(data) or not data[behind]:
        return 0, at, at
    name = int.from_bytes(data[at:behind], "big")
    length, body = _number(data, behind)
    unknown = (1 << 7 * (body - behind)) - 1  # written before the length was known
    return name, body, None if length == unknown else body + length


def _number(data: Bytes, at: int) -> tuple[int, int]:
    """(a number without the bits that say its width, where it ends)"""
    width = 9 - data[at].bit_length()
    return int.from_bytes(data[at : at + width], "big") & ((1 << 7 * width) - 1), at + width
