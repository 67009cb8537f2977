"""What an epoch takes, from a few of its steps: memory from the largest batches, time from small to large.

    sizes of all samples (headers only) ─> load of every batch ─> the largest        ─> peak memory
                                                               └> from least to most ─> seconds(work) ─> epoch

Work is counted by the FLOP counter; a line through the measured times says what the other batches take. Where
a step has several batches, the largest follows a small one: gradients lie beside it.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig

from torchtune_qwenvl.data.loader import Batch, Loader
from torchtune_qwenvl.data.sizes import measure
from torchtune_qwenvl.distributed import World
from torchtune_qwenvl.training.watch.flops import FlopCounter
from torchtune_qwenvl.training.watch.metrics import peak_memory_gib

TIMED = 10  # batches of an epoch that are timed
Step = Callable[[list[Batch]], Any]


@dataclass(frozen=True)
class Forecast:
    """Of the first epoch.

    Attributes:
        steps: optimizer steps.
        largest: tokens, padding included, and patches of the batch with most of them on one process.
        peak_memory_gib: while training, on this process.
        seconds_per_step: mean, waiting for data included.
        data_wait_seconds: of these.
        text_tokens, visual_tokens: mean per step, on all processes, padding left out.
        epochs: of the run.
    """

    steps: int
    largest: tuple[int, int]
    peak_memory_gib: float
    seconds_per_step: float
    data_wait_seconds: float
    text_tokens: float
    visual_tokens: float
    epochs: int

    def __str__(self) -> str:
        hours = self.steps * self.seconds_per_step / 3600
        return "\n".join(
            (
                f"dry run: {self.steps:,} steps per epoch, nothing was written",
                f"largest batch     {self.largest[0]:,} tokens, {self.largest[1]:,} patches",
                f"peak memory       {self.peak_memory_gib:.3f} GiB",
                f"seconds per step  {self.seconds_per_step:.4f}, {self.data_wait_seconds:.4f} for data",
                f"tokens per step   {self.text_tokens:,.0f} text, {self.visual_tokens:,.0f} visual",
                f"hours per epoch   {hours:.4f}, {self.epochs} epochs {self.epochs * hours:.4f}",
            )
        )


def forecast(loader: Loader, step: Step, flops: FlopCounter, world: World, cfg: DictConfig) -> Forecast:
    """Run the steps that tell what the first epoch takes; all ranks call. They train: end the run after it.

    Args:
        loader: of the training data.
        step: trains on the batches of one optimizer step.
        flops: of the model.
        world: whose ranks train together.
        cfg: the recipe's.

    Raises:
        ValueError: a stream, whose samples nobody knows beforehand, or a batch that does not fit into the
            device's memory.
    """
    if loader.is_stream:
        raise ValueError(
            "dry_run: expected a dataset of known length, got a stream, whose largest batch is unknown. "
            "Leave streaming off, or dry_run."
        )
    epoch = _Epoch(loader, flops, world, cfg)
    trial = _Trial(loader, step, epoch.batches)
    accumulates = cfg.gradient_accumulation_steps > 1
    least, largest = epoch.spread()[0], epoch.largest()
    trial.seconds(least)  # makes the optimizer's state, beside which the largest batches peak
    for index in largest:
        trial.seconds(*([least] if accumulates else []), index)
    peak = peak_memory_gib(world.device)
    seconds = [trial.seconds(index) for index in epoch.spread()]
    saved = trial.saved_by_accumulation(epoch.spread()) if accumulates else 0.0
    compute = epoch.total([computed for computed, _ in seconds]) - (len(epoch.work) - epoch.steps) * saved
    data = epoch.total([read for _, read in seconds])
    # Workers read ahead: training waits only for what they do not manage meanwhile.
    wait = max(0.0, data / cfg.num_workers - compute) if cfg.num_workers else data
    tokens, patches = world.sum(epoch.sums).tolist()
    visual = patches / flops.merge**2
    return Forecast(
        steps=epoch.steps,
        largest=(int(epoch.padded.max()), int(epoch.patches.max())),
        peak_memory_gib=peak,
        seconds_per_step=(compute + wait) / epoch.steps,
        data_wait_seconds=wait / epoch.steps,
        text_tokens=(tokens - visual) / epoch.steps,
        visual_tokens=visual / epoch.steps,
        epochs=cfg.epochs,
    )


class _Epoch:
    """The batches of the first epoch and how large they are.

    Attributes:
        batches: for each of this rank's batches the samples in it.
        padded, patches, work: of each batch, of the rank where it is largest: tokens with padding, patches,
            floating-point operations.
        sums: tokens without padding, and patches, of all of this rank's batches.
        steps: optimizer steps.
    """

    def __init__(self, loader: Loader, flops: FlopCounter, world: World, cfg: DictConfig) -> None:
        per_step = cfg.gradient_accumulation_steps
        loader.set_epoch(0)
        batches: list[Any] = list(loader.sampler)
        self.batches = batches[: cfg.max_steps_per_epoch * per_step] if cfg.max_steps_per_epoch else batches
        self.steps = math.ceil(len(self.batches) / per_step)
        place = {"rank": world.rank, "world_size": world.size}
        sizes = measure(loader.dataset, num_workers=cfg.num_workers, **place).tolist()
        padding = not cfg.padding_free and cfg.pack_to is None
        rows = []
        for batch in self.batches:
            tokens, patches = [sizes[i][0] for i in batch], [sizes[i][1] for i in batch]
            padded = len(batch) * max(tokens, default=0) if padding else sum(tokens)
            rows.append([padded, sum(patches), sum(map(flops.of_sample, tokens, patches)), sum(tokens)])
        loads = torch.tensor(rows, dtype=torch.float64, device=world.device)
        self.sums = loads[:, [3, 1]].sum(dim=0)
        self.padded, self.patches, self.work = world.max(loads[:, :3].contiguous()).cpu().T

    def largest(self) -> list[int]:
        """The batches with most tokens, most patches and most work, each once."""
        return sorted({int(load.argmax()) for load in (self.padded, self.patches, self.work)})

    def spread(self) -> list[int]:
        """A few batches from the least work to the most, in even steps of their rank."""
        order = self.work.argsort()
        return order[torch.linspace(0, len(order) - 1, min(TIMED, len(order))).long()].tolist()

    def total(self, seconds: Sequence[float]) -> float:
        """Of all batches, by the straight line through those of `spread`; more work never takes less."""
        x, y = self.work[self.spread()], torch.tensor(seconds, dtype=torch.float64)
        spread = (x - x.mean()).square().sum()
        slope = ((x - x.mean()) * (y - y.mean())).sum() / spread if spread else torch.tensor(0.0)
        slope = slope.clamp(0, y.mean() / x.mean())
        return float((y.mean() + slope * (self.work - x.mean())).sum())


class _Trial:
    """Takes steps with chosen batches, by the clock."""

    def __init__(self, loader: Loader, step: Step, batches: Sequence[list[Any]]) -> None:
        self.loader, self.step, self.batches = loader, step, batches

    def seconds(self, *indexes: int) -> tuple[float, float]:
        """Of one optimizer step with these batches, and of reading them."""
        start = time.perf_counter()
        batches = [self.loader.read(self.batches[index]) for index in indexes]
        read = time.perf_counter()
        try:
            loss, *_ = self.step(batches)
            loss.item()  # waits for the device
        except torch.OutOfMemoryError as error:
            tokens = max(batch.inputs["tokens"].numel() for batch in batches)
            patches = max(len(b.inputs["encoder_input"]["vision"]["pixel_values"]) for b in batches)
            raise ValueError(
                f"dry_run: a batch of {tokens:,} tokens and {patches:,} patches, among the largest, does not "
                "fit into the device's memory: lower batch_size, pack_to, tokenizer.max_seq_len or "
                "tokenizer.max_pixels, or set a saver (activation_checkpointing, optimizer_in_bwd, …)."
            ) from error
        return time.perf_counter() - read, read - start

    def saved_by_accumulation(self, indexes: Sequence[int]) -> float:
        """What two batches in one optimizer step save against two steps: the optimizer's time."""
        index = indexes[len(indexes) // 2]
        return max(0.0, 2 * self.seconds(index)[0] - self.seconds(index, index)[0])
