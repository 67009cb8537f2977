"""Where the tokens of segments are when each segment is cut into chunks of equal length.

Chunks are ordered by their number within the segment, long segments first. Then the chunks of one step are
neighbours, and so are the states that they need. Lengths 5, 2, 3 in chunks of 2:

    segment 0: 0 1 | 2 3 | 4        step 0: chunks 0 (segment 0), 1 (segment 2), 2 (segment 1)
    segment 1: 5 6                  step 1: chunks 3 (segment 0), 4 (segment 2)
    segment 2: 7 8 | 9              step 2: chunk  5 (segment 0)

All tensors are computed where the tokens are, and their sizes are known on the host, so nothing is copied or
waited for.

n tokens, s segments, N chunks of C tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from torchtune_qwenvl.modules.attention import Segments

CHUNK = 64


@dataclass(frozen=True)
class ChunkPlan:
    """Chunks of some segments.

    Attributes:
        size: C.
        places: int64 [n], place of each token among the N * C places of all chunks.
        active: number of segments that have a chunk in each step; they sum to N.
        order: int64 [s], for each segment its row among the states, which are ordered by length.
        last: int64 [s] each; `last[i]` is the token of each segment that i others follow, in segments that
            are too short for that their first one.
        first: the same for the token that i others precede, or the last one.
    """

    size: int
    places: Tensor
    active: tuple[int, ...]
    order: Tensor
    last: tuple[Tensor, ...]
    first: tuple[Tensor, ...]

    @property
    def chunks(self) -> int:
        """N."""
        return sum(self.active)

    def cut(self, x: Tensor) -> Tensor:
        """[n, h, ...] -> [N, h, C, ...], zeros after the end of a segment."""
        if len(self.places) == self.chunks * self.size and len(self.active) == 1:
            return x.unflatten(0, (-1, self.size)).transpose(1, 2).contiguous()
        padded = x.new_zeros(self.chunks * self.size, *x.shape[1:]).index_copy_(0, self.places, x)
        return padded.unflatten(0, (-1, self.size)).transpose(1, 2).contiguous()

    def join(self, x: Tensor) -> Tensor:
        """[N, h, C, ...] -> [n, h, ...]: the inverse of `cut`."""
        return x.transpose(1, 2).flatten(0, 1).index_select(0, self.places)


_PLANS: WeakKeyDictionary[Segments, dict[int, ChunkPlan]] = WeakKeyDictionary()


def chunk_plan(segments: Segments, taps: int, size: int = CHUNK) -> ChunkPlan:
    """The plan of `segments`, made once for all layers.

    Args:
        segments: of the flat tokens.
        taps: width of the convolution that looks across tokens.
        size: longest chunk.
    """
    plans = _PLANS.setdefault(segments, {})
    if taps not in plans:
        plans[taps] = _make(segments, taps, min(size, segments.longest))
    return plans[taps]


def _make(segments: Segments, taps: int, size: int) -> ChunkPlan:
    boundaries = segments.cu_seqlens.long()
    begins, ends = boundaries[:-1], boundaries[1:]
    numbers = (ends - begins + size - 1) // size  # of chunks
    by_length = numbers.argsort(descending=True, stable=True)
    order = torch.empty_like(by_length).scatter_(
        0, by_length, torch.arange(len(numbers), device=numbers.device)
    )
    active = _active(segments.lengths, size)
    steps = torch.arange(len(active), device=numbers.device)
    per_step = (numbers[:, None] > steps).sum(0)
    starts = per_step.cumsum(0) - per_step  # of each step's chunks
    place = segments.places()
    segment = torch.repeat_interleave(order, ends - begins, output_size=len(place))
    return ChunkPlan(
        size,
        (starts[place // size] + segment) * size + place % size,
        active,
        order,
        last=tuple(torch.maximum(ends - 1 - i, begins) for i in range(taps - 1)),
        first=tuple(torch.minimum(begins + i, ends - 1) for i in range(taps - 1)),
    )


def _active(lengths: Sequence[int], size: int) -> tuple[int, ...]:
    """Segments that have a chunk in each step."""
    ending = Counter((length + size - 1) // size for length in lengths)
    counts = [len(lengths)]
    for step in range(1, max(ending)):
        counts.append(counts[-1] - ending[step])
    return tuple(counts)
