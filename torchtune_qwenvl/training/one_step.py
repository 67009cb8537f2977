"""One optimizer step over several batches and ranks: the part of the training loop that touches weights."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchtune.utils import get_logger

from torchtune_qwenvl.data.loader import Batch
from torchtune_qwenvl.distributed import World
from torchtune_qwenvl.training import resume
from torchtune_qwenvl.training.resume.folders import step_folders
from torchtune_qwenvl.training.resume.lock import Lock
from torchtune_qwenvl.training.step.nonfinite import describe
from torchtune_qwenvl.training.step.optim import gradients_of
from torchtune_qwenvl.training.step.optim_in_bwd import OptimizerInBackward
from torchtune_qwenvl.training.step.parts import GradientCheck, gradient_norm
from torchtune_qwenvl.training.step.reading import read_step
from torchtune_qwenvl.training.stopping import Signals
from torchtune_qwenvl.training.watch.metrics import Step, TotalWork, Work

log = get_logger("INFO")


class TakesSteps(ABC):
    """Base of the training loop.

    Attributes:
        cfg: the resolved config.
        world: the ranks that train together.
        output_dir: of the run.
        model: what trains.
        progress: where the run stands.
        identity: what its checkpoints depend on.
        lock: on `output_dir`; None on other ranks than 0, and in a dry run.
        optimizer: over the trainable parameters.
        scheduler: of the learning rates, or None.
        check_gradients: asked after each backward pass.
        signals: what the process was asked; `main` catches them.
    """

    cfg: DictConfig
    world: World
    output_dir: Path
    model: nn.Module
    progress: resume.Progress
    identity: resume.Identity
    lock: Lock | None = None
    optimizer: Optimizer | OptimizerInBackward
    scheduler: LRScheduler | None
    check_gradients: GradientCheck
    signals: Signals = Signals()

    @abstractmethod
    def work_of(self, batch: Batch) -> Work:
        """What a batch holds, counted on the host."""

    @abstractmethod
    def loss_of(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of a batch's losses over its labels, and other sums over them to be logged."""

    def step(self, batches: list[Batch]) -> Step:
        """One optimizer step, or none: without samples, or with NaN or infinity.

        Everything that the host has to know is read in one go after the backward pass; logging reads nothing
        more. So the device waits for the host once a step, as long as starting the optimizer takes.
        """
        work = Work.total((self.work_of(batch) for batch in batches), self.world)
        if isinstance(self.optimizer, OptimizerInBackward):
            self.optimizer.paused = not work.labelled.item()  # it steps before anything can be read
        sums, losses = self.backward(batches, work)
        gradients = gradients_of(self.optimizer)
        norm = gradient_norm(gradients.values())
        step = read_step(self.world, work, sums, norm, self.signals.received is not None)
        if step.taken and not (step.loss.isfinite() and step.grad_norm.isfinite()):
            self.on_nonfinite(step, batches, losses, gradients)
            step = step._replace(taken=False)
        if step.taken:
            self.check_gradients(gradients, labelled=step.work.labelled, images=step.work.images)
            self.update(norm)
        self.optimizer.zero_grad(set_to_none=True)
        return step

    def backward(self, batches: list[Batch], work: TotalWork) -> tuple[dict[str, Tensor], list[Tensor]]:
        """The gradients of a step; returns this rank's sums by name, and the loss of each batch."""
        # The sum of weights may be below 1.
        labelled = torch.where(work.labelled > 0, work.labelled, 1).float()
        sums = {"loss": torch.zeros((), device=self.world.device)}
        losses = []
        for batch in batches:
            loss_sum, more = self.loss_of(batch)
            # Sharded gradients are averaged over the ranks, ours are to be summed.
            (loss_sum * self.world.size / labelled).backward()
            losses.append(loss_sum.detach())
            for name, value in {"loss": losses[-1], **more}.items():
                sums[name] = sums.get(name, torch.zeros_like(losses[-1])) + value.detach()
        return sums, losses

    def update(self, norm: Tensor) -> None:
        """Clip the gradients, whose norm this is, and let optimizer and scheduler step."""
        if self.cfg.clip_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.cfg.clip_grad_norm, norm)
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()

    def on_nonfinite(
        self,
        step: Step,
        batches: list[Batch],
        losses: list[Tensor],
        gradients: Mapping[nn.Parameter, Tensor],
    ) -> None:
        """Say where NaN or infinity was found. All ranks come here at the same step.

        Raises:
            ValueError: under `on_nonfinite: raise`.
        """
        where = f"step {self.progress.step + 1}: loss {step.loss:g}, norm of the gradients {step.grad_norm:g}"
        places, in_bwd = [batch.places for batch in batches], isinstance(self.optimizer, OptimizerInBackward)
        found = f"{where}. {describe(self.model, self.world, gradients, losses, places, stepped=in_bwd)}"
        if self.cfg.on_nonfinite == "raise":
            raise ValueError(f"{found} {self.last_saved()} on_nonfinite=skip leaves such steps out.")
        if self.world.is_main:
            log.warning(f"skipped {found}")

    def last_saved(self) -> str:
        """Which `step_N/` holds the last state that was saved."""
        saved = step_folders(self.output_dir)
        return f"The last saved state is {saved[-1]}." if saved else "No state was saved before."
