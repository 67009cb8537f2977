"""Cross-entropy with logits for labelled positions only, and never all of them in fp32 at once.

b rows, s tokens per row, k labelled positions, w model width, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# fp32 values that are computed at a time: as many as fit a CPU's cache or keep a GPU busy. On one CPU core,
# forward and backward of 256 x 151936 bf16 logits take 105 ms; with F.cross_entropy(logits.float(), ...) they
# take 357 ms.
_SCRATCH = {"cpu": 2**22, "cuda": 2**26}


class Losses(NamedTuple):
    """What a batch with labels gives. Sums, so that those of several batches and ranks can be added.

    Attributes:
        loss_sum: fp32 sum of the cross-entropies of the labelled tokens, each times its weight. Its gradient
            includes that of the routers' load-balance loss, its value does not.
        labelled: number of labelled tokens, int64; with weights, their sum, fp64. The mean is
            `loss_sum / labelled`.
        router_loss_sum: load-balance loss of the batch, times `labelled`, without gradient and before
            `router_aux_loss_coef`; None if the coefficient is 0.
        mtp_loss_sum: sum of the cross-entropies of the tokens after the next ones, without gradient, before
            `mtp_loss_weight`; None without prediction layers.
    """

    loss_sum: Tensor
    labelled: Tensor
    router_loss_sum: Tensor | None
    mtp_loss_sum: Tensor | None = None


# (logits [k, v], targets [k]) -> [k], one loss per position.
TokenLoss = Callable[[Tensor, Tensor], Tensor]


class _CrossEntropySum(torch.autograd.Function):
    """Sum over k of weight * (logsumexp(logits) - logits[target]), in fp32, a few rows at a time.

    Keeps the logits in their own dtype and one fp32 number per row. The gradient is computed in fp32 and
    rounded once.
    """

    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        scratch = _scratch(logits)
        sums = []
        for part in logits.split(len(scratch)):
            values = scratch[: len(part)].copy_(part)
            largest = values.amax(1, keepdim=True)
            sums.append(values.sub_(largest).exp_().sum(1).log_().add_(largest.squeeze(1)))
        normaliser = torch.cat(sums)
        ctx.save_for_backward(logits, targets, normaliser, weights)
        losses = normaliser - logits.gather(1, targets[:, None]).squeeze(1).float()
        return losses.sum() if weights is None else (losses * weights).sum()

    @staticmethod
    def backward(ctx, grad: Tensor):
        *saved, weights = ctx.saved_tensors  # under checkpointing they can be read only once
        scratch, gradient = _scratch(saved[0]), torch.empty_like(saved[0])
        # One factor for all rows, or one for each.
        factors = grad.expand(len(gradient), 1) if weights is None else grad * weights[:, None]
        parts = (x.split(len(scratch)) for x in (gradient, *saved, factors))
        for out, logits, targets, normaliser, factor in zip(*parts, strict=True):
            chances = scratch[: len(logits)].copy_(logits).sub_(normaliser[:, None]).exp_()
            at_target = targets[:, None]
            chances.scatter_(1, at_target, chances.gather(1, at_target) - 1)
            torch.mul(chances, factor, out=out)
        return gradient, None, None


def _scratch(logits: Tensor) -> Tensor:
    """[rows at a time, v] fp32, the only large tensor of a pass."""
    rows = max(1, _SCRATCH["cuda" if logits.is_cuda else "cpu"] // logits.shape[1])
    return torch.empty(min(rows, max(1, len(logits))), logits.shape[1], device=logits.device)


def chunked_loss(
    states: Tensor,
    targets: Tensor,
    head: Callable[[Tensor], Tensor],
    chunk_tokens: int,
    loss: TokenLoss | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Sum of the losses of k positions, fp32.

    A single chunk keeps its logits for the backward pass; several chunks are recomputed there. For k = 0 the
    result is a zero that depends on the head's weight, so that every rank runs the same collectives.

    Args:
        states: [k, w].
        targets: [k] token ids.
        head: [.., w] -> [.., v].
        chunk_tokens: maximum number of positions in a chunk.
        loss: see `TokenLoss`; None is the cross-entropy.
        weights: fp32 [k], by which the losses are multiplied; None: all 1.

    Raises:
        ValueError: `loss` returns something else than one number per position.
    """

    def loss_of(states: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        logits = head(states)
        if loss is None:
            return _CrossEntropySum.apply(logits, targets, weights)
        return _summed(loss, logits, targets, weights)

    if len(states) <= chunk_tokens:
        return loss_of(states, targets, weights)
    parts = [states.split(chunk_tokens), targets.split(chunk_tokens)]
    parts.append([None] * len(parts[0]) if weights is None else weights.split(chunk_tokens))
    chunks = zip(*parts, strict=True)
    losses = [checkpoint(loss_of, *chunk, use_reentrant=False) for chunk in chunks]
    return torch.stack(losses).sum()


def _summed(loss: TokenLoss, logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
    losses = loss(logits, targets)
    if losses.shape != targets.shape:
        raise ValueError(
            f"loss: expected one loss per position, [{len(targets)}], got {list(losses.shape)} from {loss}. "
            "The mean over a whole step is taken later: torch's losses need reduction: none"
        )
    return losses.float().sum() if weights is None else (losses.float() * weights).sum()


def only_gradient(term: Tensor) -> Tensor:
    """A term of a loss with the value 0: what is logged as the loss is the cross-entropy alone."""
    return term - term.detach()


def detached(value: Tensor | None) -> Tensor | None:
    """The value without gradient, if there is one."""
    return None if value is None else value.detach()
