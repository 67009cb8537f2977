"""What a search may be asked for: vectors, or images; no texts. d width of a vector; q queries; n tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_vectors(query: Any) -> Tensor:
    """A tensor, an array or a list of numbers as float32 on the CPU.

    Raises:
        ValueError: something else.
    """
    if isinstance(query, str | bytes | Path):
        raise ValueError(f"{query!r} needs the pipeline: search(query, pipeline, k)")
    try:
        return torch.as_tensor(np.asarray(query) if isinstance(query, list | tuple) else query).float().cpu()
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected a vector without a pipeline, got {type(query).__name__}") from error


def given_queries(query: Any, width: int | None, *, tokens: bool) -> tuple[list[Tensor], bool]:
    """Queries that need no encoder.

    Args:
        query: a vector [d], or vectors [q, d] of as many queries. For an index of tokens: the tokens [n, d]
            of a query, or a list of these.
        width: d of the index.
        tokens: whether the index keeps tokens.

    Returns:
        Vectors [n, d] of each query, where n is 1 without tokens, and whether it is a single query.

    Raises:
        ValueError: see `as_vectors` and `checked`.
    """
    if tokens:
        single = not (isinstance(query, list | tuple) and len(query) and np.ndim(query[0]) == 2)
        return [checked(as_vectors(each), width) for each in ([query] if single else query)], single
    vectors = as_vectors(query)
    return list(checked(vectors, width)[:, None]), vectors.ndim == 1


def checked(vectors: Tensor, width: int | None) -> Tensor:
    """Vectors [d] or [n, d] as [n, d].

    Raises:
        ValueError: another shape or width, or numbers that are not finite.
    """
    if vectors.ndim not in (1, 2) or vectors.shape[-1] != width or not vectors.numel():
        raise ValueError(
            f"expected a vector of {width} numbers, or several, got the shape {tuple(vectors.shape)}"
        )
    if not vectors.isfinite().all():
        raise ValueError("the query's vector is not finite")
    return vectors.reshape(-1, vectors.shape[-1])


def check_image(image: Any) -> None:
    """Raise a ValueError for a text: a string that is not the path of a file."""
    if isinstance(image, str) and not Path(image).is_file():
        raise ValueError(
            f"{image!r} is no file. If it is a text: there is no text tower, the encoder reads images only"
        )
