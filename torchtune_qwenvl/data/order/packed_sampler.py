"""Which packed rows come when: ranks get rows of similar work at the same time. Resumable at any step.

    rows of a buffer, by work    9 9 8 | 7 7 7 | 4 3 3        3 ranks: each group is one row per rank
    steps (batches of 1 row)     7 7 7   9 9 8   4 3 3        groups in random order

The slowest rank sets the pace of a step, so the rows of one step should be of similar size, visual tokens
included. All ranks make the same plan from the same lengths, so plans are never sent.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice

import torch
from torch import Tensor

from torchtune_qwenvl.data.order.mixture import Mixture
from torchtune_qwenvl.data.order.packing import Packer, best_fit, like_lengths, padded_places
from torchtune_qwenvl.data.order.sampler import ResumableSampler

Step = list[list[int]]  # indices of the samples of every rank's batch


def tokens_as_work(tokens: int, patches: int) -> float:
    """The work of a sample when nothing is known about the model: its tokens."""
    return float(tokens)


@dataclass(frozen=True)
class _Plan:
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
        return bisect_right(self.ends, samples_done)


class PackedSampler(ResumableSampler):
    """A ResumableSampler whose batches hold up to a number of tokens. A position still counts samples.

    Args:
        sizes: int64 [n, 2], tokens and patches of every sample, see `measure`.
        pack_to: tokens per row.
        padded: do not pack but pad. A batch holds samples of similar length, as many as take at most
            `pack_to` positions when padded to the longest.
        work: (tokens, patches) of a sample -> its work, in any unit.
        look_ahead: samples that are sorted into rows together.
        seed, shuffle, rank, world_size, mixture: see `ResumableSampler`.
    """

    def __init__(
        self,
        sizes: Tensor,
        *,
        pack_to: int,
        padded: bool = False,
        work: Callable[[int, int], float] = tokens_as_work,
        look_ahead: int = 4096,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        mixture: Mixture | None = None,
    ) -> None:
        self._lengths = sizes[:, 0].tolist()
        self._work = [work(*size) for size in sizes.tolist()]
        self.pack_to, self.padded, self.look_ahead = pack_to, padded, look_ahead
        n = len(sizes if mixture is None else mixture)
        super().__init__(n, seed=seed, shuffle=shuffle, rank=rank, world_size=world_size, mixture=mixture)

    def set_batch_size(self, batch_size: int) -> None:
        """Rows per rank and batch; with `padded` a batch is one row."""
        super().set_batch_size(1 if self.padded else batch_size)
        self._planned: _Plan | None = None

    def set_position(self, epoch: int, samples_done: int = 0) -> None:
        """See ResumableSampler; only the ends of steps are positions.

        Raises:
            ValueError: any other position. Then samples, their lengths or `pack_to` differ from the run's.
        """
        super().set_position(epoch, samples_done)
        if samples_done and samples_done not in self.plan.ends:
            raise ValueError(
                f"no step of epoch {epoch} ends after {samples_done} samples: the data, max_seq_len, "
                "pack_to, batch_tokens, batch_size or seed differ from those of the run that is resumed"
            )

    def after_step(self, samples_done: int) -> int:
        """Samples done when the step that begins at `samples_done` is done."""
        return self.plan.ends[self.plan.steps_done(samples_done)]

    def __len__(self) -> int:
        """Batches from the position to the end of the epoch, the same on every rank."""
        return len(self.plan.steps) - self.plan.steps_done(self.samples_done)

    def __iter__(self) -> Iterator[list[int]]:
        first = self.plan.steps_done(self.samples_done)
        for step, end in islice(zip(self.plan.steps, self.plan.ends, strict=True), first, None):
            self._after = end
            yield step[self.rank]

    @property
    def fill(self) -> float:
        """Share of the positions in this epoch's rows, over all ranks, that hold tokens."""
        return self.plan.tokens / self.plan.places

    def __str__(self) -> str:
        rows = f"{self.plan.rows} rows of {self.pack_to} tokens"
        if self.padded:
            rows = f"{self.plan.rows} batches of at most {self.pack_to} tokens with padding"
        return f"{self.n} samples packed into {rows}, {self.fill:.1%} full"

    @property
    def plan(self) -> "_Plan":
        """The plan of this epoch."""
        if self._planned is None or self._planned.epoch != self.epoch:
            generator = torch.Generator().manual_seed(self.seed + self.epoch)
            packer = Packer[int](
                self.pack_to,
                self._lengths.__getitem__,
                look_ahead=self.look_ahead,
                multiple=self.step_samples,
                fit=like_lengths if self.padded else best_fit,
            )
            order = self._order().tolist()
            buffers = list(packer(order))
            steps = [step for rows in buffers for step in self._steps(rows, generator)]
            ends = list(accumulate(sum(map(len, step)) for step in steps))
            rows = [[self._lengths[index] for index in row] for buffer in buffers for row in buffer]
            places = sum(map(padded_places, rows)) if self.padded else len(rows) * self.pack_to
            tokens = sum(map(sum, rows))
            self._planned = _Plan(self.epoch, steps, ends, len(rows), tokens, max(places, 1))
        return self._planned

    def _steps(self, rows: list[list[int]], generator: torch.Generator) -> list[Step]:
        """The rows of one buffer as steps. If they do not fill the last step, its batches are smaller."""
        rows = sorted(rows, key=lambda row: -sum(self._work[index] for index in row))
        groups = [rows[at : at + self.world_size] for at in range(0, len(rows), self.world_size)]
        if self.shuffle:
            groups = [groups[i] for i in torch.randperm(len(groups), generator=generator).tolist()]
        chunks = (groups[at : at + self.batch_size] for at in range(0, len(groups), self.batch_size))
        return [self._deal(chunk) for chunk in chunks]

    def _deal(self, groups: Sequence[list[list[int]]]) -> Step:
        """Give each rank a row of each group; every other group is dealt in reverse, to even out the work."""
        step: Step = [[] for _ in range(self.world_size)]
        for number, group in enumerate(groups):
            for place, row in enumerate(group):
                step[place if number % 2 == 0 else self.world_size - 1 - place] += row
        return step
