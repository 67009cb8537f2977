"""What searches an index: a comparison of all vectors, a graph over them, or late interaction of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from torchtune_qwenvl.vision.index.approximate import BACKENDS, check_installed
from torchtune_qwenvl.vision.index.late_interaction import LateInteractionSearch
from torchtune_qwenvl.vision.index.store import Store

Engine = Callable[[Sequence[Tensor], int], tuple[Tensor, Tensor]]


def check_backend(name: str, *, keeps_tokens: bool) -> None:
    """Raise a ValueError for an unknown backend, one that is not installed, or one that takes no tokens."""
    if name not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {name!r}")
    if keeps_tokens and name != "exact":
        raise ValueError(
            f'backend "{name}" searches one vector per image, and this index keeps all tokens: use "exact"'
        )
    check_installed(name)


def engine_of(store: Store, backend: str) -> Engine:
    """(vectors [n, d] of each query, of length 1; k) -> scores and images, [q, k]."""
    if store.meta.keeps_tokens:
        return LateInteractionSearch(store)
    search = BACKENDS[backend](store)
    return lambda queries, k: search(torch.cat(list(queries)), k)
