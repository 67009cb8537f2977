"""Seconds of a step by the roofline: every kernel takes as long as its operations or its bytes.

An estimate: kernels run one after the other, nothing waits for data or for the host, and FSDP's transfers
run while the GPU computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchtune_qwenvl.estimating.cards import Card
from torchtune_qwenvl.estimating.model import Stage, Weights
from torchtune_qwenvl.estimating.tally import HALF, WIDE, Tally
from torchtune_qwenvl.estimating.workload import Workload
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel
from torchtune_qwenvl.training.watch.flops import FlopCounter

# Bytes that clipping and fused AdamW move per trained value: the norm reads the gradient, clipping reads and
# writes it, the step reads four values and writes three.
OPTIMIZER_BYTES = 10 * WIDE


@dataclass(frozen=True)
class Time:
    """A step of one GPU.

    Attributes:
        computing: seconds of forward and backward pass of one micro-batch.
        transferring: seconds in which FSDP's weights and gradients of one micro-batch arrive.
        optimizer: seconds of clipping and the optimizer.
        batches: micro-batches of a step.
        tokens: of a micro-batch.
        flops: useful operations of a micro-batch, those that MFU counts.
        peak: operations per second of the GPU.
    """

    computing: float
    transferring: float
    optimizer: float
    batches: int
    tokens: int
    flops: float
    peak: float

    @property
    def step(self) -> float:
        """Seconds of an optimizer step."""
        return self.batches * max(self.computing, self.transferring) + self.optimizer

    @property
    def tokens_per_second(self) -> float:
        """Of one GPU."""
        return self.batches * self.tokens / self.step

    @property
    def mfu(self) -> float:
        """Useful operations over those that the GPU could have done; the encoder's are included."""
        return self.batches * self.flops / self.step / self.peak


def time_of(
    model: VisionLanguageModel,
    stages: Sequence[Stage],
    outside: Weights,
    work: Workload,
    cfg: Mapping[str, Any],
    card: Card,
    gpus: int,
) -> Time:
    """Time of a step.

    Args:
        model: from `estimating.model.build`.
        stages: its layers.
        outside: parameters outside of the layers.
        work: a micro-batch.
        cfg: the config, a plain dict.
        card: the GPU.
        gpus: how many share the parameters.
    """
    again = sum(stage.cost.forward for stage in stages if stage.recomputed)
    computing = sum(stage.cost.forward + stage.cost.backward for stage in stages) + again
    computing += _loss(model, work, card, gpus)
    if gpus > 1:
        computing += sum(card.moving(_copied(stage.weights, 2)) for stage in stages if stage.sharded)
        computing += card.moving(_copied(outside, 1))
    trained = sum(stage.weights.trained for stage in stages if stage.sharded) + outside.trained
    embed = model.vision_encoder.patch_embed
    return Time(
        computing=computing,
        transferring=_transferring(stages, outside, card, gpus),
        optimizer=card.moving(OPTIMIZER_BYTES * trained / gpus),
        batches=int(cfg["gradient_accumulation_steps"]),
        tokens=work.tokens,
        flops=FlopCounter(model)(work.lengths, work.labelled, work.grids, embed.still_width),
        peak=card.peak,
    )


def _loss(model: VisionLanguageModel, work: Workload, card: Card, gpus: int) -> float:
    """The head, and the passes of the cross-entropy over fp32 logits."""
    head = next((p for p in model.decoder.output.parameters()), model.decoder.tok_embeddings.weight)
    vocabulary, width = head.shape
    tally, n = Tally(card, gpus > 1), work.labelled
    tally.product(n, width, vocabulary, 1 + int(head.requires_grad))
    if head.requires_grad and gpus == 1:
        tally.move((WIDE + HALF) * head.numel(), (WIDE + HALF) * head.numel())
    values = float(n * vocabulary)
    tally.move((HALF + 8 * WIDE) * values, (2 * HALF + 8 * WIDE) * values)
    chunks = n > model.loss_chunk_tokens
    return tally.forward * (1 + chunks) + tally.backward


def _copied(weights: Weights, gathers: int) -> float:
    """Bytes that FSDP copies: what it gathered into weights, and bf16 gradients into one fp32 tensor."""
    return gathers * 2 * weights.gathered + (HALF + WIDE) * weights.trained


def _transferring(stages: Sequence[Stage], outside: Weights, card: Card, gpus: int) -> float:
    """Weights arrive for the forward and for the backward pass, gradients leave in fp32."""
    if gpus == 1:
        return 0.0
    moved = outside.gathered + WIDE * outside.trained
    moved += sum(2 * s.weights.gathered + WIDE * s.weights.trained for s in stages if s.sharded)
    return moved * (gpus - 1) / gpus / card.link
