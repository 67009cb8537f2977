"""Cross-entropy where only labelled positions ever meet the head, in chunks sized by tokens.

b rows, s tokens per row, k labelled positions, w model width, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

IGNORE = -100


def labelled_positions(labels: Tensor) -> Tensor:
    """Flat indices [k] into b * s of the positions whose next token in the row is labelled.

    Args:
        labels: [b, s], unshifted, -100 where nothing is to be learnt.
    """
    predicts = torch.zeros_like(labels, dtype=torch.bool)
    predicts[:, :-1] = labels[:, 1:] != IGNORE
    return predicts.flatten().nonzero().squeeze(1)


def chunked_cross_entropy(
    states: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor], chunk_tokens: int
) -> Tensor:
    """Sum of the cross-entropies of k positions; logits are fp32 within the loss.

    One chunk keeps its logits for the backward pass; several are recomputed there. k = 0 gives a zero that
    still hangs on the head's weight, so that every rank runs the same collectives.

    Args:
        states: [k, w].
        targets: [k] token ids.
        head: [.., w] -> [.., v].
        chunk_tokens: most positions per chunk.
    """

    def loss_of(states: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(head(states).float(), targets, reduction="sum")

    if len(states) <= chunk_tokens:
        return loss_of(states, targets)
    chunks = zip(states.split(chunk_tokens), targets.split(chunk_tokens), strict=True)
    losses = [checkpoint(loss_of, *chunk, use_reentrant=False) for chunk in chunks]
    return torch.stack(losses).sum()
