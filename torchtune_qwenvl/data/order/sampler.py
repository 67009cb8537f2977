"""Which sample comes when: a permutation per epoch, shared out among the ranks, resumable at any sample.

    order of the epoch    7 2 5 0 | 3 6 1 4 | 8          9 samples, 2 ranks, batches of 2
    rank 0                7   5   | 3   1   | 8
    rank 1                  2   0 |   6   4 | (empty)    as many batches, nothing repeated or left out

One global step of w ranks with batches of b reads the same samples as one process with batches of w*b. So a
run on two processes can be compared with a run on one.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

from torchtune_qwenvl.data.order.mixture import Mixture

log = logging.getLogger(__name__)

# What decides which samples the first batches of an epoch take; None: they take the first of the order.
Layout = dict[str, Any] | None
# (layout, epoch, order of samples, samples done) -> places in that order of the samples that were done.
Layouts = Callable[[Any, int, torch.Tensor, int], torch.Tensor]


class ResumableSampler(Sampler[list[int]]):
    """Yields this rank's batches of indices for one epoch, starting at a position in it.

    Args:
        n: number of samples in the dataset, or for a mix in an epoch.
        batch_size: samples per rank and batch; ``build_loader`` sets it.
        seed: of the permutation; the epoch is added to it.
        shuffle: False keeps the dataset's order.
        rank: of this process among ``world_size``.
        world_size: number of processes.
        drop_last: leave out the samples at the end of an epoch that do not fill a batch on every rank, and
            log their number. Otherwise the last batches are smaller, and on some ranks may be empty.
        mixture: gives the order of each epoch if several datasets are mixed; None uses a permutation.
        layouts: how batches of other layouts were made, for a run that is resumed with another one.

    Raises:
        ValueError: an empty dataset, or a rank outside the world.
    """

    def __init__(
        self,
        n: int,
        *,
        batch_size: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
        mixture: Mixture | None = None,
        layouts: Layouts | None = None,
    ) -> None:
        if n < 1:
            raise ValueError(f"expected a dataset with at least one sample, got {n}")
        if not 0 <= rank < world_size:
            raise ValueError(f"expected a rank from 0 to {world_size - 1}, got {rank}")
        self.n, self.seed, self.shuffle, self.drop_last = n, seed, shuffle, drop_last
        self.rank, self.world_size = rank, world_size
        self.epoch = self.samples_done = self._after = 0
        self.mixture, self.layouts = mixture, layouts
        self._earlier: list[tuple[Layout, int]] = []
        self.set_batch_size(batch_size)

    def set_batch_size(self, batch_size: int) -> None:
        """Samples per rank and batch."""
        if batch_size < 1:
            raise ValueError(f"expected a batch size of at least 1, got {batch_size}")
        self.batch_size = batch_size
        if self.drop_last and self.n < self.step_samples:
            raise ValueError(
                f"drop_last leaves nothing of {self.n} samples: one step takes {self.step_samples} (batch "
                f"size {batch_size} on {self.world_size} processes). Use a smaller batch or drop_last: false."
            )

    def set_position(self, epoch: int, samples_done: int = 0) -> None:
        """Go to an epoch and a place in it.

        Args:
            epoch: counted from 0.
            samples_done: samples of this epoch that *all ranks together* have taken: after k steps
                k * batch_size * world_size, at most n.
        """
        self._go_to(epoch, samples_done, [])

    def _go_to(self, epoch: int, samples_done: int, earlier: list[tuple[Layout, int]]) -> None:
        self._earlier = earlier
        if not 0 <= samples_done <= self.left:
            raise ValueError(
                f"expected a position from 0 to {self.left} samples in the epoch, got {samples_done}"
            )
        self.epoch, self.samples_done, self._after = epoch, samples_done, samples_done

    @property
    def left(self) -> int:
        """Samples of the epoch that batches of this layout give."""
        return self.n - sum(done for _, done in self._earlier)

    @property
    def layout(self) -> Layout:
        """What decides which samples the first batches of an epoch take: None, as these take the first."""
        return None

    def begin_epoch(self, epoch: int, after: Mapping[str, Any]) -> None:
        """Go to the start of an epoch, regardless of where the last one stopped."""
        self.set_position(epoch)

    def state_dict(self) -> dict[str, Any]:
        """The place after the last batch that was yielded, in samples.

        ``earlier`` lists the layouts that the epoch had before, each with the samples that it gave.
        """
        mixture = self.mixture and self.mixture.state_dict()
        return {
            "n": self.n,
            "epoch": self.epoch,
            "samples_done": self._after,
            "layout": self.layout,
            "earlier": list(self._earlier),
            "mixture": mixture,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to the place where `state_dict` was taken, also with batches of another layout.

        Args:
            state: of this rank; or of all ranks of a run with another number of them, see `of_ranks`.

        Raises:
            ValueError: the state was taken with other datasets or weights.
        """
        state = any_ranks(state)
        mixture = self.mixture and self.mixture.state_dict()
        if state["mixture"] != mixture:
            raise ValueError(
                f"the run that is resumed mixed its datasets differently: expected {state['mixture']}, got "
                f"{mixture}; give it the datasets and weights that it began with"
            )
        if state["n"] != self.n:
            raise ValueError(
                f"the run that is resumed had {state['n']} samples in an epoch, now there are {self.n}: "
                "give it the data that it began with"
            )
        earlier = [(layout, done) for layout, done in state["earlier"]]
        if state["layout"] == self.layout:
            self._go_to(state["epoch"], state["samples_done"], earlier)
        else:
            stage = (state["layout"], state["samples_done"])
            self._go_to(state["epoch"], 0, [*earlier, stage] if stage[1] else earlier)

    @property
    def step_samples(self) -> int:
        """Samples that one batch on every rank takes together."""
        return self.batch_size * self.world_size

    def after_step(self, samples_done: int) -> int:
        """Samples done after the step that begins at `samples_done`."""
        return min(samples_done + self.step_samples, self.left)

    @property
    def left_out(self) -> int:
        """Samples of each whole epoch that ``drop_last`` leaves out."""
        return self.n % self.step_samples if self.drop_last else 0

    def __len__(self) -> int:
        """Batches from the position to the end of the epoch, the same on every rank."""
        left = self.left - self.samples_done
        return left // self.step_samples if self.drop_last else -(-left // self.step_samples)

    def __iter__(self) -> Iterator[list[int]]:
        if self.left_out and self.rank == 0:
            others = " (others in the next)" if self.shuffle else ""
            log.info(
                f"drop_last: {self.left_out} of {self.n} samples do not fill a step of {self.step_samples} "
                f"and are left out in epoch {self.epoch}{others}"
            )
        order, start = self._order(), self.samples_done
        for step in range(len(self)):
            block = order[start + step * self.step_samples :][: self.step_samples]
            self._after = self.after_step(start + step * self.step_samples)
            yield block[self.rank :: self.world_size].tolist()

    def _order(self) -> torch.Tensor:
        """The samples of the epoch that batches of this layout give, in order."""
        order = self._whole_order()
        for layout, done in self._earlier:
            if layout is None:
                order = order[done:]
            elif self.layouts is None:
                raise ValueError("the run that is resumed packed its samples: resume with pack_to")
            else:
                taken = self.layouts(layout, self.epoch, order, done)
                order = order[~torch.zeros(len(order), dtype=torch.bool).index_fill_(0, taken, True)]
        return order

    def _whole_order(self) -> torch.Tensor:
        if self.mixture is not None:
            return self.mixture.order(self.epoch, self.seed, self.shuffle)
        if not self.shuffle:
            return torch.arange(self.n)
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return torch.randperm(self.n, generator=generator)


def of_ranks(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The places of all ranks of a run, for a sampler of a run with another number of ranks."""
    return {"ranks": list(states)}


def any_ranks(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """A rank's place, of what `of_ranks` has put together: for samplers whose ranks share one place."""
    return any_ranks(state["ranks"][0]) if "ranks" in state else state
