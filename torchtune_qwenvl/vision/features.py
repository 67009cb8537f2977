"""What `VisionPipeline` returns: the tokens of each image, as lists, maps, a tensor or arrays.

b images; n_i tokens of image i; t, h, w frames, rows and columns of its tokens; d their width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Features:
    """Tokens of b images and clips, in reading order: frame by frame, row by row.

    Attributes:
        tokens: [n_i, d] of each image.
        grids: (t, h, w) of each image, in these tokens.
        pooled: [b, d] if a pooling was asked for.
        layers: index of a layer -> its features, if layers were asked for; this object is then the last of
            them.
        deepstack: one entry per deepstack merger, [n_i, w] of each image; empty for encoders without them.
        cls: [frames, d] of each image; empty for encoders without a cls token.
        output: the encoder's output [m_i, w] of each image, after the merger; empty if layers were asked for
            and the last one was not.
        paths: where the images came from, if they came from `VisionPipeline.stream`.
    """

    tokens: Sequence[Tensor]
    grids: Sequence[Grid]
    pooled: Tensor | None = None
    layers: Mapping[int, Features] = field(default_factory=dict)
    deepstack: Sequence[Sequence[Tensor]] = ()
    cls: Sequence[Tensor] = ()
    output: Sequence[Tensor] = ()
    paths: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    def map(self, index: int) -> Tensor:
        """Tokens of image `index` where they belong, [t, h, w, d]."""
        return self.tokens[index].view(*self.grids[index], -1)

    def stacked(self) -> Tensor:
        """All tokens as one tensor [b, n, d].

        Raises:
            ValueError: images with different numbers of tokens.
        """
        counts = sorted({len(tokens) for tokens in self.tokens})
        if len(counts) != 1:
            raise ValueError(
                f"images have from {counts[0]} to {counts[-1]} tokens: they cannot be stacked. Use .tokens "
                "or a pooling, or give the pipeline a fixed size=(height, width) or number of tokens"
            )
        return torch.stack(list(self.tokens))

    def numpy(self) -> list[np.ndarray]:
        """Tokens of each image as float32 arrays [n_i, d]."""
        return [tokens.detach().float().cpu().numpy() for tokens in self.tokens]

    def tolist(self) -> list[list[list[float]]]:
        """Tokens of each image as nested lists."""
        return [tokens.detach().float().tolist() for tokens in self.tokens]

    def with_paths(self, paths: Sequence[str]) -> Features:
        """The same, with the images' paths."""
        return replace(self, paths=list(paths))

    def to(self, *args: Any, **kwargs: Any) -> Features:
        """The same with every tensor moved or cast, as `Tensor.to`."""
        return replace(
            self,
            tokens=[tokens.to(*args, **kwargs) for tokens in self.tokens],
            pooled=None if self.pooled is None else self.pooled.to(*args, **kwargs),
            layers={index: layer.to(*args, **kwargs) for index, layer in self.layers.items()},
            deepstack=[[tokens.to(*args, **kwargs) for tokens in each] for each in self.deepstack],
            cls=[tokens.to(*args, **kwargs) for tokens in self.cls],
            output=[tokens.to(*args, **kwargs) for tokens in self.output],
        )


def joined(parts: Sequence[Features]) -> Features:
    """Features of several batches as those of one, in their order."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    return Features(
        tokens=[tokens for part in parts for tokens in part.tokens],
        grids=[grid for part in parts for grid in part.grids],
        pooled=None if first.pooled is None else torch.cat([p.pooled for p in parts if p.pooled is not None]),
        layers={index: joined([part.layers[index] for part in parts]) for index in first.layers},
        deepstack=[
            [tokens for part in parts for tokens in part.deepstack[i]] for i in range(len(first.deepstack))
        ],
        cls=[tokens for part in parts for tokens in part.cls],
        output=[tokens for part in parts for tokens in part.output],
        paths=[path for part in parts for path in part.paths],
    )
