"""Reading `step_N/`: a run goes on as if it had never stopped, or with the settings that it has now."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from torchtune_qwenvl.data.order.mixture import seed_of
from torchtune_qwenvl.data.order.sampler import of_ranks
from torchtune_qwenvl.distributed import World
from torchtune_qwenvl.training.resume.identity import Identity
from torchtune_qwenvl.training.resume.meta import Meta, rank_file, read_meta
from torchtune_qwenvl.training.resume.optimizer import (
    SCHEDULED,
    copy_parameters,
    load_optimizer_state,
    replay,
    trainable,
)
from torchtune_qwenvl.training.resume.progress import Progress
from torchtune_qwenvl.training.resume.resharding import cut_anew
from torchtune_qwenvl.training.resume.rules import is_rate
from torchtune_qwenvl.training.step.optim_in_bwd import OptimizerInBackward


@dataclass
class Saved:
    """A `step_N/` folder as this rank reads it; another number of ranks than now may have written it.

    Attributes:
        folder: its path.
        meta: its run.json.
        changed: settings that the run has changed since, {dotted key: (before, now)}.
    """

    folder: Path
    meta: Meta
    world: World
    changed: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)

    @property
    def same_ranks(self) -> bool:
        """Whether as many ranks as now have written it, so that each has a file of its own."""
        return self.meta.world_size == self.world.size

    def progress(self) -> Progress:
        """How far the run had come, and this rank's place in the data, or the places of all ranks."""
        if self.same_ranks:
            return replace(self.meta.progress, data=self._file(self.world.rank)["data"])
        places = [self._file(rank)["data"] for rank in range(self.meta.world_size)]
        return replace(self.meta.progress, data=of_ranks(places) if all(places) else None)

    def restore(
        self,
        model: nn.Module,
        optimizer: Optimizer | OptimizerInBackward,
        scheduler: LRScheduler | None,
        progress: Progress | None = None,
    ) -> None:
        """Put everything back, random numbers last. All ranks must call.

        Another number of ranks than before draws random numbers of its own.

        Args:
            model: with the weights of its checkpoint.
            optimizer: new, as the settings make it.
            scheduler: new.
            progress: of the run now; its schedule may span other steps than before.

        Raises:
            ValueError: the trainable parameters differ, or the optimizer's state cannot be shared out among
                this number of ranks.
        """
        weights = self._weights(model)
        state = self._file(self.world.rank if self.same_ranks else 0)
        self._check(model, scheduler, weights["parameters"], state["scheduler"])
        other_course = any(map(is_rate, self.changed)) or (
            progress is not None and progress.schedule_steps != self.meta.progress.schedule_steps
        )
        copy_parameters(model, weights["parameters"])
        if other_course and scheduler is not None:
            replay(scheduler, self.meta.progress.step)
        elif scheduler is not None:
            scheduler.load_state_dict(state["scheduler"])
        hyperparameters = {path.split(".")[1] for path in self.changed if path.startswith("optimizer.")}
        changed = hyperparameters | (SCHEDULED if other_course else set())
        load_optimizer_state(optimizer, model, weights["optimizer"], changed)
        if not self.same_ranks:
            torch.manual_seed(seed_of("resumed", self.meta.run, self.meta.progress.step, self.world.rank))
            return
        torch.set_rng_state(state["rng"]["cpu"])
        if self.world.device.type == "cuda":
            torch.cuda.set_rng_state(state["rng"]["cuda"], self.world.device)

    def _file(self, rank: int, mapped: bool = True) -> dict[str, Any]:
        """A rank's file; of a mapped one only what is used is read."""
        file = self.folder / rank_file(rank)
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)

    def _weights(self, model: nn.Module) -> dict[str, Any]:
        """This rank's shards of parameters and of the optimizer's state."""
        if self.meta.shards == self.world.shards:
            return self._file(self.world.rank % self.world.shards, mapped=False)
        return cut_anew(self.folder, self.meta, model)

    def _check(
        self,
        model: nn.Module,
        scheduler: LRScheduler | None,
        parameters: Mapping[str, Any],
        saved_schedule: Mapping[str, Any] | None,
    ) -> None:
        if different := sorted(parameters.keys() ^ trainable(model).keys()):
            raise ValueError(
                f"{self.folder} holds other trainable parameters than this model; {len(different)} differ, "
                f"'{different[0]}' first. Resume with the model: section that the run began with."
            )
        with_scheduler = saved_schedule is not None
        if with_scheduler != (scheduler is not None) and not any(map(is_rate, self.changed)):
            raise ValueError(
                f"{self.folder}: the run was saved {'with' if with_scheduler else 'without'} an lr_scheduler."
            )

    def __str__(self) -> str:
        lines = [f"  {path}: {old} -> {new}" for path, (old, new) in self.changed.items()]
        if not self.same_ranks:
            lines.append(f"  processes: {self.meta.world_size} -> {self.world.size} (batch_size is for each)")
        said = ["settings that have changed since:", *lines] if lines else []
        return "\n".join([f"resumed from {self.folder}, step {self.meta.progress.step}", *said])


def read(
    folder: Path, world: World, identity: Identity | None = None, accept_changed_data: bool = False
) -> Saved:
    """A `step_N/` folder that `find` returned. All ranks must call.

    Args:
        folder: whose files have been checked.
        world: the ranks.
        identity: of this run, which gets the id of the folder's run; None compares no settings.
        accept_changed_data: see `Identity.check`.

    Raises:
        ValueError: another kind of device, or settings that cannot be honoured.
    """
    meta = read_meta(folder)
    if meta.device != world.device.type:
        raise ValueError(f"{folder} was written with device={meta.device}, this run has {world.device.type}.")
    changed: dict[str, tuple[Any, Any]] = {}
    with world.together():
        if identity is not None and world.is_main:
            changed = identity.check(meta, folder, accept_changed_data)
    if identity is not None:
        identity.run = meta.run
        changed = world.gather(changed)[0]
    return Saved(folder, meta, world, changed)
