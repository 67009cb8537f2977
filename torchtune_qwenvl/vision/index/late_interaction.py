"""Scores of images that keep all of their tokens (late interaction, MaxSim: arXiv 2004.12832, 2407.01449).

q tokens of the query, n_i tokens of image i, d width, k hits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from torchtune_qwenvl.vision.index.exact import BLOCK, keep_best
from torchtune_qwenvl.vision.index.store import Store


def late_interaction(query_tokens: Tensor, doc_tokens: Tensor | Sequence[Tensor]) -> Tensor:
    """One score per image: for each token of the query its best cosine in the image, summed over the query.

    Args:
        query_tokens: [q, d].
        doc_tokens: [n_i, d] of each image, or [images, n, d].

    Returns:
        [images], at most q.

    Raises:
        ValueError: no images, an image or a query without tokens, or another width.
    """
    docs = list(doc_tokens)
    if not docs:
        raise ValueError("expected the tokens of at least one image, got none")
    for place, tokens in enumerate([query_tokens, *docs]):
        if tokens.ndim != 2 or not len(tokens) or tokens.shape[1] != query_tokens.shape[-1]:
            what = f"image {place - 1} (from 0)" if place else "the query"
            raise ValueError(
                f"{what}: expected tokens [n, {query_tokens.shape[-1]}] with n at least 1, got the shape "
                f"{tuple(tokens.shape)}"
            )
    query = normalize(query_tokens.float(), dim=1)
    return torch.stack([(query @ normalize(tokens.float(), dim=1).T).amax(1).sum() for tokens in docs])


class LateInteractionSearch:
    """Compares each token of a query with each token of each image, block by block.

    Raises:
        ValueError: files.jsonl and the parts do not belong together.
    """

    def __init__(self, store: Store) -> None:
        self.store, self.counts = store, store.token_counts()
        held = sum(part.rows for part in store.meta.parts)
        if sum(self.counts) != held:
            raise ValueError(
                f"{store.folder}: files.jsonl counts {sum(self.counts)} tokens, the parts hold {held}. "
                "Build the index again"
            )

    def __call__(self, queries: Sequence[Tensor], k: int) -> tuple[Tensor, Tensor]:
        """Scores and numbers of the k best images, [queries, k]: best first, of equal ones the earlier image.

        Args:
            queries: [q, d] of each query, float32, of length 1.
            k: at most the number of images.

        Returns:
            `late_interaction` over q, so 1 for an image with the same tokens, and the images.
        """
        scores = torch.empty(len(queries), 0)
        images = torch.empty(len(queries), 0, dtype=torch.long)
        for first, counts, block in self._blocks():
            found = [
                torch.stack([each.amax(1).mean() for each in (query @ block.T).split(counts, 1)])
                for query in queries
            ]
            scores, images = keep_best(scores, images, torch.stack(found), first, k)
        return scores.clamp(-1, 1), images

    def _blocks(self) -> Iterator[tuple[int, list[int], Tensor]]:
        """(number of the first image, tokens of each image, all their tokens [n, d] of length 1)."""
        image = 0
        for _, part in self.store.parts():
            at = 0
            while at < len(part):
                counts = self._fitting(image, len(part) - at, BLOCK // (4 * part.shape[1]))
                end = at + sum(counts)
                block = torch.from_numpy(np.array(part[at:end], dtype=np.float32))
                yield image, counts, normalize(block, dim=1)
                at, image = end, image + len(counts)

    def _fitting(self, image: int, left: int, height: int) -> list[int]:
        """Tokens of the images from `image` on that lie in a block: one at least, none beyond its part."""
        counts, held = [self.counts[image]], self.counts[image]
        for each in range(image + 1, len(self.counts)):
            held += self.counts[each]
            if held > min(left, height):
                break
            counts.append(self.counts[each])
        return counts
