"""Plans of packed epochs: which samples of an order share a row, and which rows a step.

A plan depends on nothing but the order, the lengths and the layout. So a run that is resumed with another
layout makes the plan of the old one again, to know which samples were done.
"""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from torchtune_qwenvl.data.order.packing import Packer, best_fit, like_lengths, padded_places

Step = list[list[int]]  # places in the order of the samples of every rank's batch


@dataclass(frozen=True)
class Packed:
    """How samples become the batches of a step.

    Attributes:
        pack_to: tokens per row.
        padded: do not pack but pad, see `PackedSampler`.
        batch_size: rows per rank and batch.
        look_ahead: samples that are sorted into rows together.
    """

    pack_to: int
    padded: bool
    batch_size: int
    look_ahead: int


@dataclass(frozen=True)
class Plan:
    """The plan of an epoch.

    Attributes:
        epoch: its number.
        steps: in order.
        ends: samples done after each step.
        rows: how many, over all ranks.
        tokens: in these rows.
        places: positions of these rows, padding included.
    """

    epoch: int
    steps: list[Step]
    ends: list[int]
    rows: int
    tokens: int
    places: int

    def steps_done(self, samples_done: int) -> int:
        """How many steps have given so many samples."""
        return bisect_right(self.ends, samples_done)


class Planner:
    """Makes plans.

    Args:
        sizes: int64 [n, 2], tokens and patches of every sample.
        work: (tokens, patches) of a sample -> its work, in any unit.
        seed: of the order of the steps; the epoch is added.
        shuffle: the steps of an epoch.
        world_size: number of processes.
    """

    def __init__(
        self,
        sizes: Tensor,
        work: Callable[[int, int], float],
        *,
        seed: int = 0,
        shuffle: bool = True,
        world_size: int = 1,
    ) -> None:
        self._lengths = sizes[:, 0].tolist()
        self._work = [work(*size) for size in sizes.tolist()]
        self.seed, self.shuffle, self.world_size = seed, shuffle, world_size

    def plan(self, layout: Packed, epoch: int, order: Tensor) -> Plan:
        """The plan of an epoch.

        Args:
            layout: of its batches.
            epoch: counted from 0.
            order: int64 [m], samples of the epoch.
        """
        indices = order.tolist()
        lengths = [self._lengths[index] for index in indices]
        work = [self._work[index] for index in indices]
        generator = torch.Generator().manual_seed(self.seed + epoch)
        packer = Packer[int](
            layout.pack_to,
            lengths.__getitem__,
            look_ahead=layout.look_ahead,
            multiple=layout.batch_size * self.world_size,
            fit=like_lengths if layout.padded else best_fit,
        )
        buffers = list(packer(range(len(indices))))
        steps = [step for rows in buffers for step in self._steps(rows, work, layout, generator)]
        ends = list(accumulate(sum(map(len, step)) for step in steps))
        rows = [[lengths[place] for place in row] for buffer in buffers for row in buffer]
        places = sum(map(padded_places, rows)) if layout.padded else len(rows) * layout.pack_to
        return Plan(epoch, steps, ends, len(rows), sum(map(sum, rows)), max(places, 1))

    def done(self, layout: Any, epoch: int, order: Tensor, samples: int) -> Tensor:
        """Places in the order, int64 [samples], of the samples that the first steps of a plan took."""
        plan = self.plan(Packed(**layout), epoch, order)
        if samples and samples not in plan.ends:
            raise ValueError(
                f"no step of epoch {epoch} ends after {samples} samples: the data or max_seq_len differ from "
                "those of the run that is resumed"
            )
        steps = plan.steps[: plan.steps_done(samples)]
        return torch.tensor([place for step in steps for batch in step for place in batch], dtype=torch.int64)

    def _steps(
        self, rows: list[list[int]], work: Sequence[float], layout: Packed, generator: torch.Generator
    ) -> list[Step]:
        """The rows of one buffer as steps. If they do not fill the last step, its batches are smaller."""
        rows = sorted(rows, key=lambda row: -sum(work[place] for place in row))
        groups = [rows[at : at + self.world_size] for at in range(0, len(rows), self.world_size)]
        if self.shuffle:
            groups = [groups[i] for i in torch.randperm(len(groups), generator=generator).tolist()]
        chunks = (groups[at : at + layout.batch_size] for at in range(0, len(groups), layout.batch_size))
        return [self._deal(chunk) for chunk in chunks]

    def _deal(self, groups: Sequence[list[list[int]]]) -> Step:
        """Give each rank a row of each group; every other group is dealt in reverse, to even out the work."""
        step: Step = [[] for _ in range(self.world_size)]
        for number, group in enumerate(groups):
            for place, row in enumerate(group):
                step[place if number % 2 == 0 else self.world_size - 1 - place] += row
        return step
