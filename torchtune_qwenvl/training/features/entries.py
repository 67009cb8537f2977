"""How features lie in a shard: one entry after the other, each with a digest of its bytes.

    head      80 bytes: what is in it, and the digests
    payload   bf16 [tokens, parts, width]: per visual token the encoder's output and its deepstack features

A shard is only ever appended to, by one process. What a killed process or a power cut leaves at its end is
too short or does not have its digest, so it is never taken for an entry.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
import xxhash
from torch import Tensor

MAGIC = b"features"
# magic, key, tokens, parts, width, digest of the payload, digest of all before it
_HEAD = struct.Struct("<8s32sIII4x16s8s")
_SIGNED = _HEAD.size - 8
BYTES = 2  # of a bf16 number


@dataclass(frozen=True)
class Place:
    """Where the features of an image or clip lie.

    Attributes:
        file: the shard.
        offset: of the payload, in bytes.
        shape: tokens, parts, width.
        digest: of the payload.
    """

    file: Path
    offset: int
    shape: tuple[int, int, int]
    digest: bytes

    @property
    def end(self) -> int:
        """Where the payload ends, in bytes."""
        return self.offset + _size(self.shape)


def packed(key: bytes, features: Tensor) -> bytes:
    """An entry as bytes.

    Args:
        key: 32 bytes.
        features: bf16 [tokens, parts, width] on the CPU.
    """
    payload = features.contiguous().view(torch.int16).numpy().tobytes()
    head = _HEAD.pack(MAGIC, key, *features.shape, xxhash.xxh3_128_digest(payload), b"")[:_SIGNED]
    return head + xxhash.xxh3_64_digest(head) + payload


def scan(path: Path, start: int) -> Iterator[tuple[bytes, Place]]:
    """Key and place of each whole entry from byte `start` on; stops where a head is damaged."""
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        while (found := _read_head(path, file, start)) is not None and found[1].end <= size:
            yield found
            start = found[1].end


def _read_head(path: Path, file: IO[bytes], at: int) -> tuple[bytes, Place] | None:
    file.seek(at)
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size or xxhash.xxh3_64_digest(head[:_SIGNED]) != head[_SIGNED:]:
        return None
    magic, key, *shape, digest, _ = _HEAD.unpack(head)
    return (key, Place(path, at + _HEAD.size, tuple(shape), digest)) if magic == MAGIC else None


def read(mapped: np.ndarray, place: Place) -> Tensor | None:
    """The features of an entry, copied out of its shard; None if they are not those that were written.

    Args:
        mapped: the bytes of the shard.
        place: of the entry.
    """
    if place.end > len(mapped):
        return None
    features = torch.empty(place.shape, dtype=torch.bfloat16)
    # The copy is checked, not the file: what is checked is what is used.
    flat = features.view(torch.int16).numpy().reshape(-1).view(np.uint8)
    flat[:] = mapped[place.offset : place.end]
    return features if xxhash.xxh3_128_digest(flat.data) == place.digest else None


def _size(shape: tuple[int, int, int]) -> int:
    tokens, parts, width = shape
    return tokens * parts * width * BYTES
