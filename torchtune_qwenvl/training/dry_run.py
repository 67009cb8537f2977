"""Predicts what an epoch takes from a few of its steps: memory from the largest batches, time from a range.

    sizes of all samples (headers only) ─> load of every batch ─> the largest        ─> peak memory
                                                               └> from least to most ─> seconds(work) ─> epoch

The FLOP counter counts work. A straight line through the measured times gives the time of all other batches.
If a step has several batches, the largest is run after a small one, so that gradients are in memory as well.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from torchtune_qwenvl.counted import counted
from torchtune_qwenvl.data.loader import Batch, Loader
from torchtune_qwenvl.data.sizes import measure
from torchtune_qwenvl.distributed import World
from torchtune_qwenvl.training.step.memory_trial import MemoryTrial
from torchtune_qwenvl.training.watch.flops import FlopCounter
from torchtune_qwenvl.training.watch.metrics import peak_memory_gib
from torchtune_qwenvl.transforms.size import SampleSize

TIMED = 10  # batches of an epoch that are timed
Step = Callable[[list[Batch]], Any]


@dataclass(frozen=True)
class Forecast:
    """What the first epoch takes.

    Attributes:
        steps: optimizer steps.
        largest: most tokens, padding included, and most patches of any batch on one process.
        peak_memory_gib: while training, on this process.
        seconds_per_step: mean, including the wait for data.
        data_wait_seconds: how many of these are spent waiting for data.
        text_tokens, visual_tokens: mean per step, over all processes, without padding.
        epochs: of the run.
        recompute: the smallest share of the decoder's layers to recompute with which the largest batch fits
            the device; None if it is unknown.
    """

    steps: int
    largest: SampleSize
    peak_memory_gib: float
    seconds_per_step: float
    data_wait_seconds: float
    text_tokens: float
    visual_tokens: float
    epochs: int
    recompute: float | None = None

    def __str__(self) -> str:
        hours = self.steps * self.seconds_per_step / 3600
        advice = (
            []
            if self.recompute is None
            else [f"fits the device   activation_checkpointing.decoder={self.recompute:g}, by estimate"]
        )
        return "\n".join(
            (
                f"dry run: {counted(self.steps, 'step')} per epoch, no model was written",
                f"largest batch     {self.largest.tokens:,} tokens, {self.largest.patches:,} patches",
                f"peak memory       {self.peak_memory_gib:.3f} GiB",
                f"seconds per step  {self.seconds_per_step:.4f}, {self.data_wait_seconds:.4f} for data",
                f"tokens per step   {self.text_tokens:,.0f} text, {self.visual_tokens:,.0f} visual",
                f"hours per epoch   {hours:.4f}, {counted(self.epochs, 'epoch')} {self.epochs * hours:.4f}",
                *advice,
            )
        )


@dataclass(frozen=True)
class Schedule:
    """What a dry run has to know about the run.

    Attributes:
        epochs: number of epochs.
        batches_per_step: micro-batches of an optimizer step (gradient_accumulation_steps).
        max_steps: of an epoch (max_steps_per_epoch); None reads all of the data.
        num_workers: processes that read data.
        padded: whether batches are padded to their longest sample.
    """

    epochs: int
    batches_per_step: int = 1
    max_steps: int | None = None
    num_workers: int = 0
    padded: bool = True


def forecast(
    loader: Loader,
    step: Step,
    flops: FlopCounter,
    world: World,
    run: Schedule,
    memory: MemoryTrial | None = None,
) -> Forecast:
    """Run a few steps and predict what the first epoch takes. They change the weights: end the run after it.

    All ranks must call.

    Args:
        loader: of the training data.
        step: trains on the batches of one optimizer step.
        flops: of the model.
        world: whose ranks train together.
        run: the run that is predicted.
        memory: finds out how many layers have to be recomputed; None: it is not found out.

    Raises:
        ValueError: a stream, whose samples are not known in advance, or a batch that does not fit into the
            device's memory.
    """
    if loader.is_stream:
        raise ValueError(
            "dry_run: expected a dataset of known length, got a stream, whose largest batch is unknown. "
            "Leave streaming off, or dry_run."
        )
    epoch = _Epoch(loader, flops, world, run)
    trial = _Trial(loader, step, epoch.batches, world.device)
    accumulates = run.batches_per_step > 1
    least, largest = epoch.spread()[0], epoch.largest()
    trial.seconds(least)  # creates the optimizer's state, so that it is in memory for the largest batches
    for index in largest:
        trial.seconds(*([least] if accumulates else []), index)
    peak = peak_memory_gib(world.device)
    recompute = None if memory is None else memory.share(lambda: trial.seconds(*largest[:1]), world)
    times = [trial.seconds(index) for index in epoch.spread()]
    saved = trial.saved_by_accumulation(epoch.spread()) if accumulates else 0.0
    compute = epoch.total([time.compute for time in times]) - (len(epoch.work) - epoch.steps) * saved
    data = epoch.total([time.read for time in times])
    # Workers read ahead: training waits only if they are slower than it.
    wait = max(0.0, data / run.num_workers - compute) if run.num_workers else data
    tokens, patches = world.sum(epoch.sums).tolist()
    visual = patches / flops.merge**2
    return Forecast(
        steps=epoch.steps,
        largest=SampleSize(int(epoch.padded.max()), int(epoch.patches.max())),
        peak_memory_gib=peak,
        seconds_per_step=(compute + wait) / epoch.steps,
        data_wait_seconds=wait / epoch.steps,
        text_tokens=(tokens - visual) / epoch.steps,
        visual_tokens=visual / epoch.steps,
        epochs=run.epochs,
        recompute=recompute,
    )


class _Epoch:
    """The batches of the first epoch and how large they are.

    Attributes:
        batches: the samples of each of this rank's batches.
        padded, patches, work: tokens with padding, patches and floating-point operations of each batch, on
            the rank where it is largest.
        sums: tokens without padding, and patches, over all of this rank's batches.
        steps: optimizer steps.
    """

    def __init__(self, loader: Loader, flops: FlopCounter, world: World, run: Schedule) -> None:
        loader.set_epoch(0)
        batches: list[Any] = list(loader.sampler)
        self.batches = batches[: run.max_steps * run.batches_per_step] if run.max_steps else batches
        self.steps = math.ceil(len(self.batches) / run.batches_per_step)
        place = {"rank": world.rank, "world_size": world.size}
        measured = measure(loader.dataset, num_workers=run.num_workers, **place).tolist()
        sizes = [SampleSize(*size) for size in measured]
        rows = []
        for batch in self.batches:
            tokens, patches = [sizes[i].tokens for i in batch], [sizes[i].patches for i in batch]
            padded = len(batch) * max(tokens, default=0) if run.padded else sum(tokens)
            rows.append([padded, sum(patches), sum(map(flops.of_sample, tokens, patches)), sum(tokens)])
        loads = torch.tensor(rows, dtype=torch.float64, device=world.device)
        self.sums = loads[:, [3, 1]].sum(dim=0)
        self.padded, self.patches, self.work = world.max(loads[:, :3].contiguous()).cpu().T

    def largest(self) -> list[int]:
        """The batches with the most tokens, most patches and most work, each once."""
        return sorted({int(load.argmax()) for load in (self.padded, self.patches, self.work)})

    def spread(self) -> list[int]:
        """A few batches from the least work to the most, evenly spaced when sorted by work."""
        order = self.work.argsort()
        return order[torch.linspace(0, len(order) - 1, min(TIMED, len(order))).long()].tolist()

    def total(self, seconds: Sequence[float]) -> float:
        """Seconds of all batches, by a straight line through those of `spread`; it never slopes down."""
        x, y = self.work[self.spread()], torch.tensor(seconds, dtype=torch.float64)
        spread = (x - x.mean()).square().sum()
        slope = ((x - x.mean()) * (y - y.mean())).sum() / spread if spread else torch.tensor(0.0)
        slope = slope.clamp(0, y.mean() / x.mean())
        return float((y.mean() + slope * (self.work - x.mean())).sum())


class _Seconds(NamedTuple):
    """How long an optimizer step took, and reading its batches before it."""

    compute: float
    read: float


class _Trial:
    """Times steps with chosen batches."""

    def __init__(
        self, loader: Loader, step: Step, batches: Sequence[list[Any]], device: torch.device
    ) -> None:
        self.loader, self.step, self.batches, self.device = loader, step, batches, device

    def seconds(self, *indexes: int) -> _Seconds:
        """Take one optimizer step with these batches."""
        start = time.perf_counter()
        batches = [self.loader.read(self.batches[index]) for index in indexes]
        read = time.perf_counter()
        try:
            self.step(batches)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)  # the optimizer is still at work
        except torch.OutOfMemoryError as error:
            tokens = max(batch.inputs["tokens"].numel() for batch in batches)
            patches = max(len(b.inputs["encoder_input"]["vision"]["pixel_values"]) for b in batches)
            raise ValueError(
                f"dry_run: a batch of {tokens:,} tokens and {patches:,} patches, among the largest, does not "
                "fit into the device's memory: lower batch_size, pack_to, tokenizer.max_seq_len or "
                "tokenizer.max_pixels, or set a saver (activation_checkpointing, optimizer_in_bwd, …)."
            ) from error
        return _Seconds(time.perf_counter() - read, read - start)

    def saved_by_accumulation(self, indexes: Sequence[int]) -> float:
        """What two batches in one step save compared with two steps: one run of the optimizer."""
        index = indexes[len(indexes) // 2]
        return max(0.0, 2 * self.seconds(index).compute - self.seconds(index, index).compute)
