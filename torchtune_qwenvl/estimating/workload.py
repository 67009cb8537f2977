"""The conversations of one forward pass that an estimate is for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Photographs of about a megapixel and less, (t, h, w) in patches: 414, 391, 704 and 434 visual tokens at a
# merge of 2 x 2.
IMAGES = ((1, 46, 36), (1, 34, 46), (1, 64, 44), (1, 28, 62))
Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Mix:
    """What conversations are like.

    Attributes:
        tokens: of a conversation, visual ones included.
        visual: the share of all tokens that is visual.
        labelled: the share of all tokens that is trained on.
    """

    tokens: int = 1024
    visual: float = 0.47
    labelled: float = 0.25

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"--tokens-per-sample: expected at least 1, got {self.tokens}")
        for name in ("visual", "labelled"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name}: expected a share from 0 to 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Sample:
    """A conversation: its tokens, the last `labelled` of them labelled, and grids of its images or clip."""

    tokens: int
    labelled: int
    grids: tuple[Grid, ...] = ()


@dataclass(frozen=True)
class Workload:
    """One forward pass of one GPU.

    Attributes:
        samples: its conversations.
        merge: patches per side of a visual token.
    """

    samples: tuple[Sample, ...]
    merge: int

    @property
    def lengths(self) -> list[int]:
        """Tokens of each conversation."""
        return [sample.tokens for sample in self.samples]

    @property
    def tokens(self) -> int:
        """All tokens."""
        return sum(self.lengths)

    @property
    def labelled(self) -> int:
        """Tokens that meet the head."""
        return sum(sample.labelled for sample in self.samples)

    @property
    def grids(self) -> list[Grid]:
        """(t, h, w) of every image."""
        return [grid for sample in self.samples for grid in sample.grids]

    @property
    def patches(self) -> int:
        """Patches of all images."""
        return sum(t * h * w for t, h, w in self.grids)

    @property
    def visual(self) -> int:
        """Visual tokens."""
        return self.patches // self.merge**2


def tokens_of(cfg: Mapping[str, Any]) -> int:
    """Tokens of a forward pass of a config, padding included, at most."""
    if cfg["pack_to"] is not None:
        return int(cfg["batch_size"] * cfg["pack_to"])
    if cfg["batch_tokens"] is not None:
        return int(cfg["batch_tokens"])
    return int(cfg["batch_size"] * cfg["tokenizer"]["max_seq_len"])


def workload(tokens: int, merge: int, mix: Mix) -> Workload:
    """Conversations of about equal length that sum to so many tokens; the images go to them in turns."""
    number = max(1, round(tokens / mix.tokens))
    size = tokens // number
    lengths = [size + (17 * (i % 3) if size > 64 else 0) for i in range(number)]
    lengths[-1] += tokens - sum(lengths)
    grids: list[list[Grid]] = [[] for _ in lengths]
    total = count = 0
    while total + (visual := _visual(IMAGES[count % len(IMAGES)], merge)) <= mix.visual * tokens:
        grids[count % number].append(IMAGES[count % len(IMAGES)])
        total, count = total + visual, count + 1
    samples = (Sample(n, int(n * mix.labelled), tuple(g)) for n, g in zip(lengths, grids, strict=True))
    return Workload(tuple(samples), merge)


def _visual(grid: Grid, merge: int) -> int:
    t, h, w = grid
    return t * h * w // merge**2
