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
        return self.features(images)

    def stream(self, paths: Sequence[str], **options: Any) -> "_Stream":
        return _Stream(self, paths, **options)

    def features(self, images: Sequence[str | Path]) -> Features:
        """Of good images: 1 to 4 tokens each, and a vector that has nothing to do with them."""
        tokens = [self.tokens(image) for image in images]
        grids = [(1, 1, len(each)) for each in tokens]
        pooled = torch.stack([self.vector(image) for image in images])
        return Features(tokens, grids, pooled, paths=[str(image) for image in images])

    def tokens(self, path: str | Path) -> torch.Tensor:
        vector = self.vector(path)
        count = 1 + int(1000 * vector[0].abs()) % 4
        return torch.stack([vector.roll(shift) for shift in range(count)])

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
        pool=None,
    ) -> None:
        self.pipeline, self.paths, self.on_bad, self.size = pipeline, paths, on_bad, batch_tokens
        self.failed: list[tuple[str, str]] = []

    def __iter__(self) -> Iterator[Features]:
        for start in range(0, len(self.paths), self.size):
            good = []
            for path in self.paths[start : start + self.size]:
                self.pipeline.seen.append(path)
                try:
                    self.pipeline.vector(path)
                    good.append(path)
                except BadSample as error:
                    if self.on_bad == "raise":
                        raise
                    self.failed.append((path, str(error)))
            if good:
                yield self.pipeline.features(good)


def write_files(folder: Path, count: int, bad: Sequence[int] = ()) -> Path:
    """So many files called like images, in two folders; returns the folder."""
    for number in range(count):
        file = folder / "ab"[number % 2] / f"{number:05d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(("bad" if number in bad else "good") + str(number))
    return folder


def build_and_die(photos: Path, out: Path, after: float | None, **options: Any) -> None:
    """Build an index in a process that is killed after so many seconds; run in a process of its own."""
    from torchtune_qwenvl.vision.index import ImageIndex

    if after is not None:
        threading.Timer(after, os.kill, (os.getpid(), signal.SIGKILL)).start()
    ImageIndex.build(photos, StandIn(seconds=2e-4), out, workers=0, **options)
    os._exit(0)  # no waiting for the timer
