"""Reading `step_N/`: a run goes on as if it had never stopped, or with the settings that it has now."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

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
from torchtune_qwenvl.training.resume.rules import is_rate
from torchtune_qwenvl.training.step.optim_in_bwd import OptimizerInBackward


@dataclass
class Saved:
    """A `step_N/` folder as this rank reads it.

    Attributes:
        folder: its path.
        meta: its run.json.
        changed: settings that the run has changed since, {dotted key: (before, now)}.
        progress: how far the run had come; where this rank was in the data is read by `open_progress`.
    """

    folder: Path
    meta: Meta
    world: World
    changed: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._state: dict[str, Any] | None = None

    @property
    def state(self) -> dict[str, Any]:
        """This rank's file."""
        if self._state is None:
            file = self.folder / rank_file(self.world.rank)
            self._state = torch.load(file, map_location="cpu", weights_only=True)
        return self._state

    def progress(self) -> Progress:
        """How far the run had come, and this rank's place in the data."""
        return replace(self.meta.progress, data=self.state["data"])

    def restore(
        self,
        model: nn.Module,
        optimizer: Optimizer | OptimizerInBackward,
        scheduler: LRScheduler | None,
        progress: Progress | None = None,
    ) -> None:
        """Put everything back, random numbers last. All ranks must call.

        Args:
            model: with the weights of its checkpoint.
            optimizer: new, as the settings make it.
            scheduler: new.
            progress: of the run now; its schedule may span other steps than before.

        Raises:
            ValueError: the trainable parameters differ.
        """
        self._check(model, scheduler)
        other_course = any(map(is_rate, self.changed)) or (
            progress is not None and progress.schedule_steps != self.meta.progress.schedule_steps
        )
        copy_parameters(model, self.state["parameters"])
        if other_course and scheduler is not None:
            replay(scheduler, self.meta.progress.step)
        elif scheduler is not None:
            scheduler.load_state_dict(self.state["scheduler"])
        hyperparameters = {path.split(".")[1] for path in self.changed if path.startswith("optimizer.")}
        changed = hyperparameters | (SCHEDULED if other_course else set())
        load_optimizer_state(optimizer, model, self.state["optimizer"], changed)
        torch.set_rng_state(self.state["rng"]["cpu"])
        if self.world.device.type == "cuda":
            torch.cuda.set_rng_state(self.state["rng"]["cuda"], self.world.device)
        self._state = None

    def _check(self, model: nn.Module, scheduler: LRScheduler | None) -> None:
        if different := sorted(self.state["parameters"].keys() ^ trainable(model).keys()):
            raise ValueError(
                f"{self.folder} holds other trainable parameters than this model; {len(different)} differ, "
                f"'{different[0]}' first. Resume with the model: section that the run began with."
            )
        with_scheduler = self.state["scheduler"] is not None
        if with_scheduler != (scheduler is not None) and not any(map(is_rate, self.changed)):
            raise ValueError(
                f"{self.folder}: the run was saved {'with' if with_scheduler else 'without'} an lr_scheduler."
            )

    def __str__(self) -> str:
        lines = [f"  {path}: {old} -> {new}" for path, (old, new) in self.changed.items()]
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
        ValueError: another number of processes or kind of device, or settings that cannot be honoured.
    """
    meta = read_meta(folder)
    if meta.world_size != world.size:
        raise ValueError(
            f"{folder} was written by {meta.world_size} process(es), this run has {world.size}: each "
            f"reads its own part, so resume with --nproc_per_node {meta.world_size} (over all nodes)."
        )
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
