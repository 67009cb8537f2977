"""Plans of packed epochs: which samples of an order share a row, and in which order the rows come.

A plan depends on nothing but the order, the lengths and the layout. So a run that is resumed with another
layout makes the plan of the old one again, to know which samples were done. A plan is a list of rows, which
any number of ranks can read: on two ranks a step takes the rows that two steps of one rank would take.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any

import torch
from torch import Tensor

from torchtune_qwenvl.data.order.packing import Packer, best_fit, like_lengths, padded_places

Row = list[int]  # places in the order of the samples that share a row


@dataclass(frozen=True)
class Packed:
    """How samples become rows.

    Attributes:
        pack_to: tokens per row.
        padded: do not pack but pad, see `PackedSampler`.
        look_ahead: samples that are sorted into rows together.
        batch_size: rows per rank and batch that the plan is made for.
        world_size: processes that it is made for: so many rows of similar work follow each other.
    """

    pack_to: int
    padded: bool
    look_ahead: int
    batch_size: int
    world_size: int

    def same_rows(self, other: "Packed") -> bool:
        """Whether both make the same kind of rows, so that one's plan can be read in the other's steps."""
        ours, theirs = ((one.pack_to, one.padded, one.look_ahead) for one in (self, other))
        return ours == theirs


@dataclass(frozen=True)
class Plan:
    """The plan of an epoch.

    Attributes:
        epoch: its number.
        rows: in order.
        ends: samples done after each row.
        tokens: in these rows.
        places: positions of these rows, padding included.
    """

    epoch: int
    rows: list[Row]
    ends: list[int]
    tokens: int
    places: int

    def rows_done(self, samples_done: int) -> int:
        """How many rows have given so many samples.

        Raises:
            ValueError: no row ends there.
        """
        done = bisect_right(self.ends, samples_done)
        if samples_done != (self.ends[done - 1] if done else 0):
            raise ValueError(
                f"no step of epoch {self.epoch} ends after {samples_done} samples: the data, max_seq_len or "
                "seed differ from those of the run that is resumed"
            )
        return done


class Planner:
    """Makes plans.

    Args:
        sizes: int64 [n, 2], tokens and patches of every sample.
        work: (tokens, patches) of a sample -> its work, in any unit.
        seed: of the order of the rows; the epoch is added.
        shuffle: the rows of an epoch.
    """

    def __init__(
        self,
        sizes: Tensor,
        work: Callable[[int, int], float],
        *,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        self._lengths = sizes[:, 0].tolist()
        self._work = [work(*size) for size in sizes.tolist()]
        self.seed, self.shuffle = seed, shuffle

    def plan(self, layout: Packed, epoch: int, order: Tensor) -> Plan:
        """The plan of an epoch.

        Args:
            layout: of its rows.
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
            multiple=layout.batch_size * layout.world_size,
            fit=like_lengths if layout.padded else best_fit,
        )
        buffers = packer(range(len(indices)))
        rows = [row for buffer in buffers for row in self._ordered(buffer, work, layout, generator)]
        tokens = [[lengths[place] for place in row] for row in rows]
        places = sum(map(padded_places, tokens)) if layout.padded else len(rows) * layout.pack_to
        return Plan(epoch, rows, list(accumulate(map(len, rows))), sum(map(sum, tokens)), max(places, 1))

    def done(self, layout: Any, epoch: int, order: Tensor, samples: int) -> Tensor:
        """Places in the order, int64 [samples], of the samples that the first rows of a plan took."""
        plan = self.plan(Packed(**layout), epoch, order)
        rows = plan.rows[: plan.rows_done(samples)]
        return torch.tensor([place for row in rows for place in row], dtype=torch.int64)

    def _ordered(
        self, rows: list[Row], work: Sequence[float], layout: Packed, generator: torch.Generator
    ) -> Iterator[Row]:
        """The rows of one buffer: groups of one row per rank, of similar work, in random order.

        A last group of fewer rows comes last, so that only the last step of an epoch is smaller.
        """
        rows = sorted(rows, key=lambda row: -sum(work[place] for place in row))
        groups = [rows[at : at + layout.world_size] for at in range(0, len(rows), layout.world_size)]
        if self.shuffle:
            whole = len(rows) // layout.world_size
            chosen = torch.randperm(whole, generator=generator).tolist()
            groups = [*(groups[number] for number in chosen), *groups[whole:]]
        return chain.from_iterable(groups)


def dealt(rows: Sequence[Row], rank: int, world_size: int) -> list[int]:
    """What of a step's rows a rank takes: every second round is dealt in reverse, to even out the work."""
    taken: list[int] = []
    for number, at in enumerate(range(0, len(rows), world_size)):
        place = rank if number % 2 == 0 else world_size - 1 - rank
        for row in rows[at : at + world_size][place : place + 1]:
            taken += row
    return taken
