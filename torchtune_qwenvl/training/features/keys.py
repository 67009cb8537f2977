"""Key of an image or clip: a digest of its bytes and of everything that decides which patches they become.

Of a file or of encoded bytes nothing is decoded for it. Of an image that is in memory already (a PIL image,
an array, a tensor) the pixels are digested.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets.fingerprint import Hasher

from torchtune_qwenvl.transforms.images.decode import decode_image
from torchtune_qwenvl.transforms.media_planner import PlannedMedia

_CHUNK = 2**20
# What only decides the size or the choice of frames: the key holds the size and the frames themselves.
_PLANNED = (
    *("min_pixels", "max_pixels", "frame_pixels", "total_pixels", "max_image_pixels", "max_frame_pixels"),
    *("fps", "num_frames", "min_frames", "max_frames", "max_duration", "decode_timeout", "decode_threads"),
)
_DERIVED = ("normalise", "_normalise")  # from other settings


def settings_digest(transform: Any) -> str:
    """Digest of the class of an image or video transform and of its settings that decide pixels."""
    settings = dict(vars(transform))
    if "settings" in settings:  # of a video transform
        settings |= vars(settings.pop("settings"))
    kept = {name: value for name, value in settings.items() if name not in (*_PLANNED, *_DERIVED)}
    kept = {name: list(value) if isinstance(value, tuple) else value for name, value in kept.items()}
    made_by = f"{type(transform).__module__}.{type(transform).__qualname__}"
    return Hasher.hash((made_by, sorted(kept), [kept[name] for name in sorted(kept)]))


def key_of(medium: PlannedMedia, settings: str) -> bytes:
    """32 bytes that differ where the patches of two images or clips may differ.

    Args:
        medium: planned, not decoded.
        settings: `settings_digest` of its transform.

    Raises:
        OSError: its file cannot be read.
    """
    plan = medium.plan
    frames = getattr(plan, "indices", ())
    digest = hashlib.sha256(f"{settings} {plan.height} {plan.width} {frames}".encode())
    for part in _content(medium.source):
        digest.update(part)
    return digest.digest()


def file_state(source: Any) -> tuple[int, ...]:
    """What changes when the files of an image or clip are replaced or edited; empty for what is in memory."""
    if isinstance(source, Sequence) and not isinstance(source, str | bytes):
        return tuple(value for frame in source for value in file_state(frame))
    if not isinstance(source, str | Path):
        return ()
    found = os.stat(source)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _content(source: Any) -> Iterator[bytes | memoryview]:
    """The bytes of an image or clip; each part begins with what it is, so that no two read alike."""
    if isinstance(source, str | Path):
        yield f"encoded {os.stat(source).st_size} ".encode()
        with open(source, "rb") as file:
            while part := file.read(_CHUNK):
                yield part
    elif isinstance(source, bytes):
        yield f"encoded {len(source)} ".encode()
        yield source
    elif isinstance(source, np.ndarray | torch.Tensor):
        values = np.ascontiguousarray(source.cpu().numpy() if isinstance(source, torch.Tensor) else source)
        yield f"{type(source).__name__} {values.dtype} {values.shape} ".encode()
        yield values.reshape(-1).view(np.uint8).data
    elif isinstance(source, Sequence):
        yield f"frames {len(source)} ".encode()
        for frame in source:
            yield from _content(frame)
    else:
        pixels = np.ascontiguousarray(decode_image(source, max_image_pixels=2**40).numpy())
        yield f"pixels {pixels.shape} ".encode()
        yield pixels.reshape(-1).data
