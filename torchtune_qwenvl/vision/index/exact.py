"""Exact cosine search, part by part: memory depends neither on the number of vectors nor on that of parts.

q queries, k hits, d width.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from torchtune_qwenvl.vision.index.store import Store

BLOCK = 16 * 2**20  # bytes of vectors that are in memory at once


class ExactSearch:
    """Compares each query with each vector."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def __call__(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Cosines and rows of the k nearest, [q, k]: best first, of equal ones the lower row.

        Args:
            queries: [q, d], float32, of length 1.
            k: at most the number of vectors.
        """
        scores = queries.new_empty(len(queries), 0)
        rows = torch.empty(len(queries), 0, dtype=torch.long)
        for first, block in unit_blocks(self.store):
            scores, rows = keep_best(scores, rows, queries @ block.T, first, k)
        return scores.clamp(-1, 1), rows


def keep_best(scores: Tensor, rows: Tensor, new: Tensor, first: int, k: int) -> tuple[Tensor, Tensor]:
    """The k best of the hits so far and of new scores [q, m], which are those of row `first` and on."""
    there = torch.arange(first, first + new.shape[1]).expand(len(new), -1)
    scores, order = torch.sort(torch.cat([scores, new], 1), dim=1, descending=True, stable=True)
    return scores[:, :k], torch.cat([rows, there], 1).gather(1, order[:, :k])


def unit_blocks(store: Store, start: int = 0) -> Iterator[tuple[int, Tensor]]:
    """(first row, vectors as float32 of length 1) from row `start` on."""
    for first, part in store.parts():
        height = max(1, BLOCK // (4 * part.shape[1]))
        for at in range(max(0, start - first), len(part), height):
            block = np.array(part[at : at + height], dtype=np.float32)
            yield first + at, normalize(torch.from_numpy(block), dim=1)
