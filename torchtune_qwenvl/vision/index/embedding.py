"""Images -> vectors -> parts of an index.

Each part has its own stretch of the list and its own stream. So it comes out the same after a resume,
whatever the encoder's batches were before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from torchtune_qwenvl.vision.index.listing import Named
from torchtune_qwenvl.vision.index.meta import Meta
from torchtune_qwenvl.vision.index.store import Store


class Reading(NamedTuple):
    """How images are read, as `VisionPipeline.stream` takes it."""

    on_bad: str = "skip"
    workers: int = 2
    batch_tokens: int | None = None


def embed_into(
    store: Store, images: Sequence[Named], pipeline: Any, reading: Reading, *, progress: bool = False
) -> None:
    """Append the vectors of `images` to an index, part by part.

    Args:
        store: open for writing.
        images: without those that are there already.
        pipeline: the index's.
        reading: see `Reading`.
        progress: show a bar.

    Raises:
        ValueError: a bad image under on_bad="raise"; parts that were committed stay.
    """
    size = store.meta.part_size
    with tqdm(total=len(images), unit="image", disable=not progress) as bar:
        for start in range(0, len(images), size):
            stretch = images[start : start + size]
            vectors, names, failed = embed(stretch, pipeline, store.meta, reading)
            store.append(vectors, names, failed, complete=start + size >= len(images))
            bar.update(len(stretch))
    store.mark(complete=True)


def embed(
    images: Sequence[Named], pipeline: Any, meta: Meta, reading: Reading
) -> tuple[np.ndarray, list[str], list[tuple[str, str]]]:
    """Vectors [rows, width], the names of their images, and name and reason of each bad image."""
    places = {image.path: place for place, image in enumerate(images)}
    vectors, rows = np.empty((0, 0), meta.dtype), 0
    names: list[str] = []
    failed: dict[int, str] = {}
    stream = pipeline.stream(list(places), **_options(meta, reading))
    for paths, block in _blocks(stream):
        if not names:
            vectors = np.empty((len(images), block.shape[1]), meta.dtype)
        with np.errstate(over="ignore"):  # beyond float16 is infinite, which is looked for
            cast = block.astype(meta.dtype)
        for path, vector in zip(paths, cast, strict=True):
            if np.isfinite(vector).all():
                vectors[rows] = vector
                names.append(images[places[path]].name)
                rows += 1
            else:
                failed[places[path]] = _not_finite(path, meta, reading)
    failed |= {places[str(path)]: reason for path, reason in stream.failed}
    return vectors[:rows], names, [(images[place].name, failed[place]) for place in sorted(failed)]


def _options(meta: Meta, reading: Reading) -> dict[str, Any]:
    options = {"workers": reading.workers, "on_bad": reading.on_bad, **call_options(meta)}
    return options | ({"batch_tokens": reading.batch_tokens} if reading.batch_tokens else {})


def call_options(meta: Meta) -> dict[str, Any]:
    """pool, layers and at for the pipeline's call, without those that have their default."""
    settings = {"pool": meta.settings["pool"], "layers": meta.settings["layer"], "at": meta.settings["at"]}
    return {name: value for name, value in settings.items() if value is not None}


def _blocks(stream: Any) -> Iterator[tuple[Sequence[str], np.ndarray]]:
    for features in stream:
        yield features.paths, features.pooled.detach().to(torch.float32).cpu().numpy()


def _not_finite(path: str, meta: Meta, reading: Reading) -> str:
    fix = 'use dtype="float32"' if meta.dtype == "float16" else "encode in float32"
    reason = f"{path}: its vector is not finite in {meta.dtype} ({fix})"
    if reading.on_bad == "raise":
        raise ValueError(reason)
    return reason
