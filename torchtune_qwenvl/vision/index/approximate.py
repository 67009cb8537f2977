"""Approximate search by faiss or usearch: a graph (HNSW) over the vectors, kept in the index's folder.

Rows are only ever appended, so a graph with fewer rows than the index is completed, not built again.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from torchtune_qwenvl.vision.index.exact import ExactSearch, unit_blocks
from torchtune_qwenvl.vision.index.store import PARTIAL, Store

CONNECTIONS = 32  # of a vector in the graph


class Search(Protocol):
    """Queries [q, d] of length 1 -> cosines and rows [q, k]; row -1 if there are fewer hits."""

    def __call__(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """See the class."""


class FaissSearch:
    """`IndexHNSWFlat` with inner products."""

    package, distribution, file = "faiss", "faiss-cpu", "search.faiss"

    def __init__(self, store: Store) -> None:
        self.faiss = _installed(self)
        path, width = store.folder / self.file, store.meta.width
        self.graph: Any = self.faiss.read_index(str(path)) if path.is_file() else None
        if self.graph is None or self.graph.d != width or self.graph.ntotal > store.meta.rows:
            self.graph = self.faiss.IndexHNSWFlat(width, CONNECTIONS, self.faiss.METRIC_INNER_PRODUCT)
        if self.graph.ntotal < store.meta.rows:
            for _, block in unit_blocks(store, self.graph.ntotal):
                self.graph.add(block.numpy())
            _keep(path, lambda to: self.faiss.write_index(self.graph, to))

    def __call__(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """See `Search`."""
        self.graph.hnsw.efSearch = max(64, 2 * k)
        scores, rows = self.graph.search(queries.numpy(), k)
        return torch.from_numpy(scores).clamp(-1, 1), torch.from_numpy(rows)


class UsearchSearch:
    """usearch's `Index` with inner products."""

    package, distribution, file = "usearch", "usearch", "search.usearch"

    def __init__(self, store: Store) -> None:
        index = _installed(self, "usearch.index").Index
        path, width = store.folder / self.file, store.meta.width
        self.graph: Any = index.restore(str(path)) if path.is_file() else None
        if self.graph is None or self.graph.ndim != width or len(self.graph) > store.meta.rows:
            self.graph = index(ndim=width, metric="ip", dtype="f32", connectivity=CONNECTIONS)
        if len(self.graph) < store.meta.rows:
            for first, block in unit_blocks(store, len(self.graph)):
                self.graph.add(np.arange(first, first + len(block), dtype=np.uint64), block.numpy())
            _keep(path, self.graph.save)

    def __call__(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """See `Search`."""
        self.graph.expansion_search = max(64, 2 * k)
        scores, rows = torch.zeros(len(queries), k), torch.full((len(queries), k), -1)
        for number, query in enumerate(queries.numpy()):
            found = self.graph.search(query, k)
            scores[number, : len(found)] = 1 - torch.from_numpy(np.array(found.distances))
            rows[number, : len(found)] = torch.from_numpy(found.keys.astype(np.int64))
        return scores.clamp(-1, 1), rows


BACKENDS: dict[str, Any] = {"exact": ExactSearch, "faiss": FaissSearch, "usearch": UsearchSearch}


def check_installed(name: str) -> None:
    """Raise a ValueError for a backend whose package is not installed."""
    if hasattr(BACKENDS[name], "package"):
        _installed(BACKENDS[name])


def _installed(backend: Any, module: str | None = None) -> Any:
    try:
        return importlib.import_module(module or backend.package)
    except ImportError as error:
        raise ValueError(
            f'backend "{backend.package}" is not installed ({error}): pip install {backend.distribution}, '
            'or use backend="exact"'
        ) from error


def _keep(path: Path, write: Callable[[str], object]) -> None:
    """Save a graph next to its vectors; in a folder that cannot be written it is built each time."""
    if os.access(path.parent, os.W_OK):
        partial = path.with_name(path.name + PARTIAL)
        write(str(partial))
        os.replace(partial, path)
