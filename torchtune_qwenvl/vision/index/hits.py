"""What a search finds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Hit:
    """An image that was found.

    Attributes:
        name: relative to the data folder.
        path: of the file.
        score: cosine with the query. In an index of tokens: the best cosine that each token of the query has
            in the image, their mean. 1 for the same image.
        row: number of the image in the index.
    """

    name: str
    path: Path
    score: float
    row: int
