"""Three-axis positions (t, h, w) for M-RoPE, as the Qwen team's training code computes them.

Text advances all three axes together. Each token of a visual block gets its frame's time, its row and its
column, counted from the block's start. The next text position is the maximum over all three axes + 1.

    text text | image of 2 x 3 merged patches | text
    t  0  1   |  2 2 2  2 2 2                 |  5
    h  0  1   |  2 2 2  3 3 3                 |  5
    w  0  1   |  2 3 4  2 3 4                 |  5

transformers 5.23 advances by max(h, w) only. This differs after a video whose times exceed both.

If a family writes a video as one block, its temporal patches are at 0, 1, 2 … (Qwen2-VL), or spaced by time
(Qwen2.5-VL): at 2 positions per second, patches that are 0.75 s apart are at 0, 1, 3, 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class VisualBlock:
    """A run of placeholder tokens.

    Args:
        start: index of its first token in the sequence.
        height, width: size of its grid in merged patches.
        times: position of each temporal patch on the axis t, from the block's start; an image has one, at 0.
    """

    start: int
    height: int
    width: int
    times: tuple[int, ...] = (0,)

    @property
    def n_tokens(self) -> int:
        return len(self.times) * self.height * self.width


def temporal_positions(
    n_patches: int, seconds_per_patch: float | None, tokens_per_second: float | None
) -> tuple[int, ...]:
    """Positions of a video's temporal patches on the axis t, counted from its start.

    Args:
        n_patches: number of temporal patches.
        seconds_per_patch: time from one to the next.
        tokens_per_second: positions per second; None: one per temporal patch.
    """
    if tokens_per_second is None or seconds_per_patch is None:
        return tuple(range(n_patches))
    # In fp32, as in the training code. Rounding down comes last: seconds below 1 would all become 0.
    return tuple((torch.arange(n_patches) * seconds_per_patch * tokens_per_second).long().tolist())


def mrope_positions(n_tokens: int, blocks: Sequence[VisualBlock]) -> torch.Tensor:
    """Positions of a sequence of `n_tokens` tokens.

    Args:
        n_tokens: s, length of the sequence.
        blocks: its visual blocks, in order and without overlap.

    Returns:
        int64 [s, 3], axes (t, h, w).
    """
    positions = torch.empty(n_tokens, 3, dtype=torch.int64)
    done = next_position = 0
    for block in blocks:
        n_text = block.start - done
        positions[done : block.start] = torch.arange(next_position, next_position + n_text)[:, None]
        next_position += n_text
        grid = torch.cartesian_prod(
            torch.tensor(block.times), torch.arange(block.height), torch.arange(block.width)
        )
        done = block.start + block.n_tokens
        positions[block.start : done] = next_position + grid
        next_position += max(max(block.times), block.height - 1, block.width - 1) + 1
    n_text = n_tokens - done
    positions[done:] = torch.arange(next_position, next_position + n_text)[:, None]
    return positions


def visual_positions(blocks: Sequence[VisualBlock]) -> torch.Tensor:
    """Indices of the visual tokens in their sequence, int64, ascending."""
    runs = [torch.arange(block.start, block.start + block.n_tokens) for block in blocks]
    return torch.cat(runs) if runs else torch.empty(0, dtype=torch.int64)
