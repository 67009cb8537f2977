"""Scores of images that keep all of their tokens (late interaction, MaxSim: arXiv 2004.12832, 2407.01449).

q tokens of the query, n_i tokens of image i, d width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize


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
