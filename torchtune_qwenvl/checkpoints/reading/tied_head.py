"""Folders whose config.json ties the head to the embeddings, and which hold a head all the same.

PEFT's merges leave such folders behind. As in transformers, the tensors decide: equal ones are tied,
different ones are not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, equal

_KEY = "tie_word_embeddings"
_ROWS = 4096  # compared at a time


def says_tied(config: Mapping[str, Any]) -> bool:
    """Whether config.json ties the head; the top level decides."""
    text = config.get("text_config")
    found = config.get(_KEY)
    return bool(text.get(_KEY) if found is None and isinstance(text, Mapping) else found)


def untied_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json with an untied head, at each place that says it is tied."""
    text = config.get("text_config")
    nested = {"text_config": {**text, _KEY: False}} if isinstance(text, Mapping) and _KEY in text else {}
    return {**config, _KEY: False, **nested}


def differ(read: Callable[[str, int, int], Tensor], head: str, embeddings: str, rows: int) -> bool:
    """Whether two tensors differ in any value.

    Args:
        read: (name, first row, row after the last) -> these rows.
        head: name of one.
        embeddings: name of the other, of the same shape.
        rows: their number of rows.
    """
    starts = range(0, rows, _ROWS)
    return any(not equal(*(read(name, at, at + _ROWS) for name in (head, embeddings))) for at in starts)
