"""A pipeline without an encoder, with `VisionPipeline`'s interface: a file's bytes decide its vector."""

import hashlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torchtune_qwenvl.transforms.errors import BadSample
from torchtune_qwenvl.vision import Features


class StandIn:
    """Files that begin with "bad" are bad images.

    Args:
        width: of a vector.
        fingerprint: of encoder and settings.
        seconds: for each image.
    """

    def __init__(self, width: int = 8, fingerprint: str = "f" * 64, seconds: float = 0) -> None:
        self.width, self.fingerprint, self.seconds = width, fingerprint, seconds
        self.seen: list[str] = []

    def __call__(self, images: Any, **options: Any) -> Features:
        images = images if isinstance(images, list) else [images]
        pooled = torch.stack([self.vector(image) for image in images])
        return Features([row[None] for row in pooled], [(1, 1, 1)] * len(images), pooled)

    def stream(self, paths: Sequence[str], **options: Any) -> "_Stream":
        return _Stream(self, paths, **options)

    def vector(self, path: str | Path) -> torch.Tensor:
        content = Path(path).read_bytes()
        if content.startswith(b"bad"):
            raise BadSample("0 bytes, expected an image", where=str(path))
        time.sleep(self.seconds)
        seed = int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
        return torch.from_numpy(np.random.default_rng(seed).standard_normal(self.width, dtype=np.float32))


class _Stream:
    def __init__(
        self,
        pipeline: StandIn,
        paths: Sequence[str],
        *,
        workers=0,
        on_bad="raise",
        batch_tokens=4,
        pool="mean",
    ) -> None:
        self.pipeline, self.paths, self.on_bad, self.size = pipeline, paths, on_bad, batch_tokens
        self.failed: list[tuple[str, str]] = []

    def __iter__(self) -> Iterator[Features]:
        for start in range(0, len(self.paths), self.size):
            good = []
            for path in self.paths[start : start + self.size]:
                self.pipeline.seen.append(path)
                try:
                    good.append((path, self.pipeline.vector(path)))
                except BadSample as error:
                    if self.on_bad == "raise":
                        raise
                    self.failed.append((path, str(error)))
            if good:
                names, vectors = zip(*good, strict=True)
                yield Features(
                    [v[None] for v in vectors], [(1, 1, 1)] * len(good), torch.stack(vectors), paths=names
                )


def write_files(folder: Path, count: int, bad: Sequence[int] = ()) -> Path:
    """So many files called like images, in two folders; returns the folder."""
    for number in range(count):
        file = folder / "ab"[number % 2] / f"{number:05d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(("bad" if number in bad else "good") + str(number))
    return folder


def build_and_die(photos: Path, out: Path, after: float | None, part_size: int) -> None:
    """Build an index in a process that is killed after so many seconds; run in a process of its own."""
    from torchtune_qwenvl.vision.index import ImageIndex

    if after is not None:
        threading.Timer(after, os.kill, (os.getpid(), signal.SIGKILL)).start()
    ImageIndex.build(photos, StandIn(seconds=2e-4), out, part_size=part_size, workers=0)
    os._exit(0)  # no waiting for the timer
