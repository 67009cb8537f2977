"""A folder of vectors that finds similar images.

    images ─> VisionPipeline.stream(pool=...) ─> part-*.npy, files.jsonl ─> cosine ─> hits

An index has a vector per image, or with pool=None all tokens of it, which late interaction compares.

d width of a vector; q queries; k hits; n_i tokens of image i.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn.functional import normalize

from torchtune_qwenvl.vision.index.clip_retrieval import export_clip_retrieval
from torchtune_qwenvl.vision.index.embedding import Reading, check_encoder, embed_into, embed_queries
from torchtune_qwenvl.vision.index.engines import Engine, check_backend, engine_of
from torchtune_qwenvl.vision.index.hits import Hit
from torchtune_qwenvl.vision.index.listing import Images, list_images
from torchtune_qwenvl.vision.index.meta import META, Meta, checked_settings
from torchtune_qwenvl.vision.index.queries import given_queries
from torchtune_qwenvl.vision.index.store import Store

Backend = Literal["exact", "faiss", "usearch"]
OnBad = Literal["raise", "skip"]


class ImageIndex:
    """Vectors of images in a folder; see `build` and `load`.

    Example:
        >>> pipeline = VisionPipeline.from_checkpoint("Qwen3-VL-2B-Instruct")
        >>> index = ImageIndex.build("photos", pipeline, "photos.index")
        >>> for hit in index.search("query.jpg", pipeline, k=3):
        ...     print(f"{hit.score:.3f}  {hit.name}")
    """

    def __init__(self, store: Store, backend: Backend = "exact", root: str | Path | None = None) -> None:
        check_backend(backend, keeps_tokens=store.meta.keeps_tokens)
        self.store, self.backend = store, backend
        self.root = Path(root or store.meta.root)

    @classmethod
    def build(
        cls,
        images: Images,
        pipeline: Any,
        out: str | Path,
        *,
        pool: str | None = "mean",
        factor: int = 1,
        layer: int | None = None,
        at: str | None = None,
        root: str | Path | None = None,
        dtype: str = "float32",
        part_size: int | None = None,
        encoder: Mapping[str, Any] | None = None,
        backend: Backend = "exact",
        **reading: Any,
    ) -> ImageIndex:
        """Encode images into the folder `out`. If it holds a part of them already, the rest is added.

        A build that was killed goes on after its last part, and ends with the same files as one that was not.

        Args:
            images: a folder, or files and folders; see `list_images`.
            pipeline: a `VisionPipeline`.
            out: the index's folder.
            pool: how tokens become one vector: "mean", "max" or "cls"; None keeps the tokens.
            factor: without a pooling: so many similar tokens become one; see `pool_by_factor`.
            layer: whose tokens; None for the encoder's output.
            at: "merged" or "patches"; None for the pipeline's default.
            root: the data folder that names are relative to; see `list_images`.
            dtype: of the vectors on disk, "float32" or "float16".
            part_size: images per part, at most one of which a kill costs; 1,024 if None, 64 for tokens.
            encoder: how to load the pipeline again; stored for whoever opens the index.
            backend: as in `load`.
            **reading: `on_bad`, `workers`, `batch_tokens`, `retry_failed` and `progress` of `add`.

        Raises:
            ValueError: no images, none that can be read, or a folder that holds something else or an index of
                another encoder or other settings.
        """
        settings = checked_settings(pool, factor, layer, at)
        base, named = list_images(images, root)
        if (Path(out) / META).is_file():
            index = cls.load(out, backend=backend)
            if (made := index.store.meta.settings) != settings:
                raise ValueError(f"{out} was made with {made}, got {settings}. Choose another folder")
            named = list_images(images, root or index.root)[1]
            check_encoder(pipeline, index.store)
        else:
            check_backend(backend, keeps_tokens=pool is None)
            size = part_size or (64 if pool is None else 1024)
            meta = Meta(pipeline.fingerprint, settings, base, dict(encoder or {}), dtype, size)
            index = cls(Store.create(out, meta), backend)
        index.add([image.path for image in named], pipeline, **reading)
        return index

    @classmethod
    def load(
        cls, folder: str | Path, *, root: str | Path | None = None, backend: Backend = "exact"
    ) -> ImageIndex:
        """Open an index.

        Args:
            folder: where `build` wrote it.
            root: the data folder, if it has moved.
            backend: "exact", or "faiss" or "usearch" for an approximate graph, which is kept in the folder.

        Raises:
            ValueError: no index there, damaged files, or a backend that is not installed.
        """
        return cls(Store.open(folder), backend, root)

    def add(
        self,
        images: Images,
        pipeline: Any,
        *,
        on_bad: OnBad = "skip",
        workers: int = 2,
        batch_tokens: int | None = None,
        retry_failed: bool = False,
        progress: bool = False,
    ) -> int:
        """Encode the images that the index does not have yet; returns how many came in.

        Args:
            images: a folder, or files and folders.
            pipeline: as the index was made with.
            on_bad: "skip" lists bad images in `failed`; "raise" stops, and keeps the parts done so far.
            workers, batch_tokens: of `VisionPipeline.stream`.
            retry_failed: try images that failed before once more.
            progress: show a bar.

        Raises:
            ValueError: another encoder, no images, or an index without a single vector afterwards.
        """
        check_encoder(pipeline, self.store)
        _, named = list_images(images, self.root)
        with self.store.writing():
            self._forget()
            rows = len(self)
            known = set(self.names) | (set() if retry_failed else set(self.failed))
            missing = [image for image in named if image.name not in known]
            if missing:
                self.store.mark(complete=False)
            reading = Reading(on_bad, workers, batch_tokens)
            try:
                embed_into(self.store, missing, pipeline, reading, progress=progress)
            finally:
                self._forget()
        self._check_filled()
        return len(self) - rows

    def search(self, query: Any, pipeline: Any = None, k: int = 10) -> Any:
        """The k images nearest to a query, best first: by cosine, or by late interaction of tokens.

        Args:
            query: with a pipeline an image or a list of images; without one a vector [d] or vectors [q, d],
                or for an index of tokens the tokens [n, d] of a query or a list of these.
            pipeline: as the index was made with.
            k: number of hits; fewer if the index has fewer.

        Returns:
            A list of `Hit`, or for several queries a list of such lists.

        Raises:
            ValueError: another encoder, a vector of another width, a text, or an empty index.
        """
        self._check_filled()
        if k < 1:
            raise ValueError(f"k: expected at least 1, got {k}")
        if pipeline is None:
            queries, single = given_queries(query, self.width, tokens=self.store.meta.keeps_tokens)
        else:
            queries = embed_queries(query, pipeline, self.store)
            single = not isinstance(query, list | tuple)
        scores, rows = self._engine([normalize(each, dim=1) for each in queries], min(k, len(self)))
        found = [
            [self._hit(score, row) for score, row in zip(*pair, strict=True) if row >= 0]
            for pair in zip(scores.tolist(), rows.tolist(), strict=True)
        ]
        return found[0] if single else found

    def embed(self, images: Any, pipeline: Any) -> Any:
        """Vectors of images as the index's own were made: [q, d], or for an index of tokens a list
        of [n_i, d].

        Raises:
            ValueError: another encoder, a bad image, or a text.
        """
        vectors = embed_queries(images, pipeline, self.store)
        return vectors if self.store.meta.keeps_tokens else torch.cat(vectors)

    def export_clip_retrieval(self, folder: str | Path) -> Path:
        """Write the index in clip-retrieval's layout; see `export_clip_retrieval`."""
        self._check_filled()
        if self.store.meta.keeps_tokens:
            raise ValueError(f"{self.store.folder} keeps all tokens: clip-retrieval has one vector per image")
        return export_clip_retrieval(self.store, Path(folder), self.root)

    def __len__(self) -> int:
        return self.store.meta.rows

    @property
    def width(self) -> int | None:
        """Of a vector; None for an empty index."""
        return self.store.meta.width

    @cached_property
    def names(self) -> Sequence[str]:
        """Names of the images, in the order of their vectors."""
        return self.store.names()

    @cached_property
    def failed(self) -> Mapping[str, str]:
        """Name of each bad image -> the reason; without those that were read later."""
        names = set(self.names)
        return {name: reason for name, reason in self.store.failed().items() if name not in names}

    @cached_property
    def _engine(self) -> Engine:
        return engine_of(self.store, self.backend)

    def _forget(self) -> None:
        for name in ("names", "failed", "_engine"):
            self.__dict__.pop(name, None)

    def _hit(self, score: float, row: int) -> Hit:
        return Hit(self.names[row], self.root / self.names[row], score, row)

    def _check_filled(self) -> None:
        if len(self):
            return
        reasons = list(self.failed.values())
        why = (
            f"none of {len(reasons)} images could be read, the first: {reasons[0]}"
            if reasons
            else "it is empty"
        )
        raise ValueError(f"{self.store.folder}: no vectors in this index, {why}")
