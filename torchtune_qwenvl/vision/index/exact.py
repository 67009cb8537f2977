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
            there = torch.arange(first, first + len(block)).expand(len(queries), -1)
            scores, order = torch.sort(
                torch.cat([scores, queries @ block.T], 1), dim=1, descending=True, stable=True
            )
            scores, order = scores[:, :k], order[:, :k]
            rows = torch.cat([rows, there], 1).gather(1, order)
        return scores.clamp(-1, 1), rows


def unit_blocks(store: Store, start: int = 0) -> Iterator[tuple[int, Tensor]]:
    """(first row, vectors as float32 of length 1) from row `start` on."""
    for first, part in store.parts():
        height = max(1, BLOCK // (4 * part.shape[1]))
        for at in range(max(0, start - first), len(part), height):
            block = np.array(part[at : at + height], dtype=np.float32)
            yield first + at, normalize(torch.from_numpy(block), dim=1)
