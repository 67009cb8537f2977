"""Which packed rows come when: ranks get rows of similar work at the same time. Resumable at any step.

    rows of a buffer, by work    9 9 8 | 7 7 7 | 4 3          3 ranks: each group is one row per rank
    steps (batches of 1 row)     7 7 7   9 9 8   4 3          groups in random order, a smaller one at the end

The slowest rank sets the pace of a step, so the rows of one step should be of similar size, visual tokens
included. All ranks make the same plan from the same lengths, so plans are never sent. A run that is resumed
with another number of ranks or another batch size keeps the plan that it began with: it only takes more or
fewer of its rows per step.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from torchtune_qwenvl.counted import counted
from torchtune_qwenvl.data.order.mixture import Mixture
from torchtune_qwenvl.data.order.plan import Packed, Plan, Planner, dealt
from torchtune_qwenvl.data.order.sampler import Layout, ResumableSampler, any_ranks


def tokens_as_work(tokens: int, patches: int) -> float:
    """The work of a sample when nothing is known about the model: its tokens."""
    return float(tokens)


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
        self.planner = Planner(sizes, work, seed=seed, shuffle=shuffle)
        self.pack_to, self.padded, self.look_ahead = pack_to, padded, look_ahead
        super().__init__(
            len(sizes if mixture is None else mixture),
            seed=seed,
            shuffle=shuffle,
            rank=rank,
            world_size=world_size,
            mixture=mixture,
            layouts=self.planner.done,
        )

    @property
    def layout(self) -> Layout:
        """See ResumableSampler: which samples come first depends on the rows."""
        return asdict(self._packed)

    def set_batch_size(self, batch_size: int) -> None:
        """Rows per rank and batch; with `padded` a batch is one row."""
        super().set_batch_size(1 if self.padded else batch_size)
        self._plan_as(Packed(self.pack_to, self.padded, self.look_ahead, self.batch_size, self.world_size))

    def _plan_as(self, layout: Packed) -> None:
        self._packed = layout
        self._planned: tuple[Plan, Tensor] | None = None

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See ResumableSampler; a plan whose rows are as ours is kept."""
        layout = any_ranks(state)["layout"]
        if layout not in (None, self.layout) and self._packed.same_rows(Packed(**layout)):
            self._plan_as(Packed(**layout))
        super().load_state_dict(state)

    def _go_to(self, epoch: int, samples_done: int, earlier: list[tuple[Layout, int]]) -> None:
        """See `set_position`; only the ends of rows are positions."""
        if (epoch, earlier) != (self.epoch, self._earlier):
            self._planned = None
        super()._go_to(epoch, samples_done, earlier)
        if samples_done:
            self.plan.rows_done(samples_done)

    def after_step(self, samples_done: int) -> int:
        """Samples done when the step that begins at `samples_done` is done."""
        return self.plan.ends[self.plan.rows_done(samples_done) :][: self._step_rows][-1]

    @property
    def _step_rows(self) -> int:
        """Rows that one batch on every rank takes together."""
        return self.batch_size * self.world_size

    def __len__(self) -> int:
        """Batches from the position to the end of the epoch, the same on every rank."""
        return -(-(len(self.plan.rows) - self.plan.rows_done(self.samples_done)) // self._step_rows)

    def __iter__(self) -> Iterator[list[int]]:
        plan, order = self._plan_and_order()
        for at in range(plan.rows_done(self.samples_done), len(plan.rows), self._step_rows):
            step = slice(at, at + self._step_rows)
            self._after = plan.ends[step][-1]
            yield order[dealt(plan.rows[step], self.rank, self.world_size)].tolist()

    @property
    def fill(self) -> float:
        """Share of the positions in this epoch's rows, over all ranks, that hold tokens."""
        return self.plan.tokens / self.plan.places

    def __str__(self) -> str:
        rows = f"{counted(len(self.plan.rows), 'row')} of {self.pack_to} tokens"
        if self.padded:
            rows = counted(len(self.plan.rows), "batch", "batches")
            rows += f" of at most {self.pack_to} tokens with padding"
        return f"{counted(self.n, 'sample')} packed into {rows}, {self.fill:.1%} full"

    @property
    def plan(self) -> Plan:
        """The plan of what this layout gives of the epoch."""
        return self._plan_and_order()[0]

    def _plan_and_order(self) -> tuple[Plan, Tensor]:
        if self._planned is None or self._planned[0].epoch != self.epoch:
            order = self._order()
            self._planned = self.planner.plan(self._packed, self.epoch, order), order
        return self._planned
