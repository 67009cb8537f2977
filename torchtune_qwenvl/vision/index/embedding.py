"""Images -> vectors -> parts of an index.

Each part has its own stretch of the list and its own stream. So it comes out the same after a resume,
whatever the encoder's batches were before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from tqdm import tqdm

from torchtune_qwenvl.vision.index.listing import Named
from torchtune_qwenvl.vision.index.meta import Meta
from torchtune_qwenvl.vision.index.queries import check_image
from torchtune_qwenvl.vision.index.store import Embedded, Store
from torchtune_qwenvl.vision.index.token_pooling import pool_by_factor


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
            good, failed = embed(stretch, pipeline, store.meta, reading)
            store.append(good, failed, complete=start + size >= len(images))
            bar.update(len(stretch))
    store.mark(complete=True)


def embed(
    images: Sequence[Named], pipeline: Any, meta: Meta, reading: Reading
) -> tuple[Embedded, list[tuple[str, str]]]:
    """Vectors of the images that are good, and name and reason of each that is not."""
    places = {image.path: place for place, image in enumerate(images)}
    kept: list[np.ndarray] = []
    names: list[str] = []
    failed: dict[int, str] = {}
    stream = pipeline.stream(list(places), **_options(meta, reading))
    for features in stream:
        for path, vectors in zip(features.paths, vectors_of(features, meta), strict=True):
            with np.errstate(over="ignore"):  # beyond float16 is infinite, which is looked for
                cast = vectors.cpu().numpy().astype(meta.dtype)
            if np.isfinite(cast).all():
                kept.append(cast)
                names.append(images[places[path]].name)
            else:
                failed[places[path]] = _not_finite(path, meta, reading)
    failed |= {places[str(path)]: reason for path, reason in stream.failed}
    joined = np.concatenate(kept) if kept else np.empty((0, 0), meta.dtype)
    good = Embedded(joined, names, [len(vectors) for vectors in kept])
    return good, [(images[place].name, failed[place]) for place in sorted(failed)]


def vectors_of(features: Any, meta: Meta) -> list[Tensor]:
    """Vectors [n, d] of each image as float32: one, or its tokens pooled by the index's factor."""
    if not meta.keeps_tokens:
        return list(features.pooled.detach().float()[:, None])
    factor = meta.settings["factor"]
    return [pool_by_factor(tokens.detach().float(), factor) for tokens in features.tokens]


def embed_queries(images: Any, pipeline: Any, store: Store) -> list[Tensor]:
    """Vectors [n, d] of one image or of a list of them, as the index's own were made; on the CPU.

    Raises:
        ValueError: another encoder, a bad image, or a text.
    """
    check_encoder(pipeline, store)
    images = list(images) if isinstance(images, list | tuple) else [images]
    for image in images:
        check_image(image)
    found = pipeline(images, **call_options(store.meta))
    return [vectors.cpu() for vectors in vectors_of(found, store.meta)]


def check_encoder(pipeline: Any, store: Store) -> None:
    """Raise a ValueError if another pipeline made the index."""
    made, given = store.meta.fingerprint, pipeline.fingerprint
    if made != given:
        raise ValueError(
            f"{store.folder}: made by another encoder, or with other image settings (fingerprint "
            f"{made[:12]}, got {given[:12]}). Use that encoder, or build a new index"
        )


def _options(meta: Meta, reading: Reading) -> dict[str, Any]:
    options = {"workers": reading.workers, "on_bad": reading.on_bad, **call_options(meta)}
    return options | ({"batch_tokens": reading.batch_tokens} if reading.batch_tokens else {})


def call_options(meta: Meta) -> dict[str, Any]:
    """pool, layers and at for the pipeline's call, without those that have their default."""
    settings = {"pool": meta.settings["pool"], "layers": meta.settings["layer"], "at": meta.settings["at"]}
    return {name: value for name, value in settings.items() if value is not None}


def _not_finite(path: str, meta: Meta, reading: Reading) -> str:
    fix = 'use dtype="float32"' if meta.dtype == "float16" else "encode in float32"
    reason = f"{path}: its vector is not finite in {meta.dtype} ({fix})"
    if reading.on_bad == "raise":
        raise ValueError(reason)
    return reason
