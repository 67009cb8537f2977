"""Metrics logged besides the loss: speed, waiting for data, memory, and how well the device is used."""

import resource
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields, replace
from typing import NamedTuple

import torch

from torchtune_qwenvl.distributed import World

# Peak in dense bf16 TFLOP/s from the makers' data sheets; the first name that a device's name contains
# counts.
PEAK_TFLOPS = {
    "B200": 2250.0,
    "GH200": 989.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "H800": 989.0,
    "A100": 312.0,
    "A800": 312.0,
    "A6000": 155.0,
    "A40": 150.0,
    "A10G": 70.0,
    "A10": 125.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "RTX 5090": 209.5,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
}


def peak_flops(device: torch.device, tflops: float | None = None) -> float | None:
    """Peak operations per second of a device: from `tflops` if given, else by its name; None if unknown."""
    if tflops is None and device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        tflops = next((peak for key, peak in PEAK_TFLOPS.items() if key in name), None)
    return None if tflops is None else tflops * 1e12


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory so far in GiB: allocated on a CUDA device, resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


@dataclass(frozen=True)
class Work:
    """What one rank's batches of a step hold.

    Attributes:
        labelled: labelled tokens, which the loss is the mean over, each counted with its weight.
        tokens: tokens, padding left out.
        images: images and clips.
        flops: floating-point operations, see `FlopCounter`.
        skipped: samples left out.
        dropped_turns: turns that truncation cut.
        samples: samples trained on.
        drawn: samples taken of each member of a mix.
        lost: how many of these were left out.
    """

    labelled: float = 0
    tokens: int = 0
    images: int = 0
    flops: float = 0.0
    skipped: int = 0
    dropped_turns: int = 0
    samples: int = 0
    drawn: tuple[int, ...] = ()
    lost: tuple[int, ...] = ()

    @staticmethod
    def total(parts: Iterable["Work"], world: World) -> "TotalWork":
        """Sum over batches and ranks, without waiting for the device."""
        rows = [(*astuple(part)[:-2], *part.drawn, *part.lost) for part in parts]
        counts = torch.tensor(rows, dtype=torch.float64).sum(dim=0)
        return TotalWork(world.sum(world.send(counts)))


@dataclass(frozen=True)
class TotalWork:
    """The sum of the work of several batches, on the device.

    Attributes:
        counts: float64, the fields of `Work` in their order, `drawn` and `lost` with one number per member;
            on the device until the step's figures are read.
    """

    counts: torch.Tensor

    @property
    def labelled(self) -> torch.Tensor:
        """Labelled tokens, each counted with its weight, a scalar."""
        return self.counts[0]

    @property
    def images(self) -> torch.Tensor:
        """Images and clips, a scalar."""
        return self.counts[2]

    def __add__(self, other: "TotalWork") -> "TotalWork":
        return TotalWork(self.counts + other.counts)

    def read(self) -> Work:
        """As numbers; waits for the device."""
        counts = self.counts.tolist()
        single = len(fields(Work)) - 2
        members = (len(counts) - single) // 2
        drawn, lost = counts[single : single + members], counts[single + members :]
        return replace(Work(*counts[:single]), drawn=tuple(drawn), lost=tuple(lost))


class Step(NamedTuple):
    """What an optimizer step gives, over all ranks, on the host.

    Attributes:
        loss: mean over the labels: labelled tokens, or images.
        grad_norm: norm of the gradients before clipping.
        work: what the batches held.
        others: name -> mean over the labels of what else is logged.
        taken: whether the weights were updated. A step without samples, or with NaN that is skipped, is not.
        asked_to_stop: whether a signal has asked any rank to stop after this step.
    """

    loss: torch.Tensor
    grad_norm: torch.Tensor
    work: TotalWork
    others: dict[str, torch.Tensor]
    taken: bool = True
    asked_to_stop: bool = False


class Meter:
    """Measures speed between two log lines, without the time inside `paused()` (validation, saving).

    Args:
        world: the ranks that train together.
        peak: peak operations per second of a device, for MFU.
        members: names of the mixed datasets.
    """

    def __init__(self, world: World, peak: float | None, members: Sequence[str] = ()) -> None:
        self._world, self._peak = world, peak
        self._skipped = self._dropped_turns = 0.0
        names = [f"drawn_{name}" for name in members] + [f"skipped_{name}" for name in members]
        self._of_members = dict.fromkeys(names, 0.0)
        self._work: TotalWork | None = None
        self._restart()

    def add(self, work: TotalWork) -> None:
        """Add one step's `Work.total`; it is read from the device only when a line is logged."""
        self._work = work if self._work is None else self._work + work
        self._steps += 1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Context in which the run waits for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Context in which the run does something other than training."""
        start = time.perf_counter()
        yield
        self._began += time.perf_counter() - start

    def report(self) -> dict[str, float]:
        """Metrics of all ranks since the last call; waits for the device.

        Waiting and memory are this rank's. Memory, skipped samples and dropped turns count from the start.
        """
        assert self._work is not None, "report() before the first step"
        work = self._work.read()
        for name, count in zip(self._of_members, (*work.drawn, *work.lost), strict=True):
            self._of_members[name] += count
        self._skipped += work.skipped
        self._dropped_turns += work.dropped_turns
        seconds = time.perf_counter() - self._began
        per_device = work.flops / seconds / self._world.size
        figures = {
            "tokens_per_second": work.tokens / seconds,
            "images_per_second": work.images / seconds,
            "seconds_per_step": seconds / self._steps,
            "data_wait_seconds": self._waited / self._steps,
            "peak_memory_gib": peak_memory_gib(self._world.device),
            "tflops_per_device": per_device / 1e12,
            "skipped_samples": self._skipped,
            "dropped_turns": self._dropped_turns,
        }
        figures |= self._of_members
        if self._peak is not None:
            figures["mfu"] = per_device / self._peak
        self._restart()
        return figures

    def _restart(self) -> None:
        self._work = None
        self._steps = 0
        self._waited = 0.0
        self._began = time.perf_counter()
