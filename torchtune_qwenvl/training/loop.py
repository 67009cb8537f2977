"""The steps of a run, from where it stands to its end: what all recipes have in common.

A recipe sets up what is listed below, and says what a batch holds (`work_of`), what its loss is (`loss_of`),
and what is done at a validation (`validate`).
"""

from abc import ABC, abstractmethod
from itertools import islice
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from torchtune_qwenvl.data.loader import Batch, Loader
from torchtune_qwenvl.distributed import World
from torchtune_qwenvl.training import resume
from torchtune_qwenvl.training.epochs import Epochs
from torchtune_qwenvl.training.profiling import build_profiler
from torchtune_qwenvl.training.resume.lock import Lock
from torchtune_qwenvl.training.step.optim import current_learning_rates, gradients_of
from torchtune_qwenvl.training.step.optim_in_bwd import OptimizerInBackward
from torchtune_qwenvl.training.step.parts import GradientCheck, gradient_norm
from torchtune_qwenvl.training.watch.history import History
from torchtune_qwenvl.training.watch.metrics import Meter, Step, Work


class TrainingLoop(ABC):
    """Base of the recipes.

    Attributes:
        cfg: the resolved config.
        world: the ranks that train together.
        output_dir: of the run.
        model: what trains.
        loader: this rank's batches.
        epochs: where each epoch ends.
        progress: where the run stands.
        identity: what its checkpoints depend on.
        lock: on `output_dir`; None on other ranks than 0, and in a dry run.
        optimizer: over the trainable parameters.
        scheduler: of the learning rates, or None.
        check_gradients: asked after each backward pass.
        meter: of speed and memory.
        logger: keeps the figures; None on other ranks than 0, and in a dry run.
        nothing_trained: what an epoch without a single label is an error of.
    """

    cfg: DictConfig
    world: World
    output_dir: Path
    model: nn.Module
    loader: Loader
    epochs: Epochs
    progress: resume.Progress
    identity: resume.Identity
    lock: Lock | None = None
    optimizer: Optimizer | OptimizerInBackward
    scheduler: LRScheduler | None
    check_gradients: GradientCheck
    meter: Meter
    logger: History | None = None
    nothing_trained = "trained on no token at all: there is no sample, or every sample was skipped"

    @abstractmethod
    def work_of(self, batch: Batch) -> Work:
        """What a batch holds, counted on the host."""

    @abstractmethod
    def loss_of(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of a batch's losses over its labels, and other sums over them to be logged."""

    @abstractmethod
    def validate(self) -> None:
        """What is due every `run_val_every_n_steps`."""

    @property
    def saved(self) -> nn.Module:
        """The module whose trainable parameters a resumed run needs."""
        return self.model

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, as far as is known."""
        return self.epochs.total_steps(self.progress)

    def train(self) -> None:
        """All epochs, from where the progress stands."""
        bar = tqdm(total=self.total_steps, initial=self.progress.step, disable=not self.world.is_main)
        with bar as self.bar, build_profiler(self.cfg.profiler) as self.profiler:
            for epoch in range(self.progress.epoch, self.cfg.epochs):
                self.train_epoch(epoch)

    def train_epoch(self, epoch: int) -> None:
        """The steps of an epoch, from the first sample that no step has seen."""
        self.epochs.begin(epoch, self.progress)
        batches, over = iter(self.loader), self.epochs.is_over(self.progress)
        first_step, labelled = self.progress.step, torch.zeros((), device=self.world.device)
        while not over:
            with self.meter.waiting():
                step_batches = list(islice(batches, self.cfg.gradient_accumulation_steps))
            rates = current_learning_rates(self.optimizer)
            step = self.step(step_batches)
            self.progress.step += 1
            self.progress.data = self.loader.state_dict()
            over = self.epochs.is_over(self.progress)
            labelled = labelled + step.work.labelled  # stays on the device
            self.meter.add(step.work)
            self.bar.update()
            self.profiler.step()
            if self.is_due(self.cfg.log_every_n_steps):
                self.log_step(step, rates)
            with self.meter.paused():
                if self.is_due(self.cfg.save_every_n_steps):
                    self.check_gradients.read()
                if self.is_due(self.cfg.run_val_every_n_steps):
                    self.validate()
                if self.is_due(self.cfg.save_every_n_steps):
                    self.save()
        if self.progress.step > first_step and not labelled.item():
            raise ValueError(
                f"epoch {epoch} {self.nothing_trained}. The reasons are logged above; on_bad_sample=raise "
                "stops at the first bad sample."
            )

    def step(self, batches: list[Batch]) -> Step:
        """One optimizer step."""
        work = Work.total((self.work_of(batch) for batch in batches), self.world)
        labelled = work.labelled.clamp(min=1).float()
        loss = torch.zeros((), device=self.world.device)
        others: dict[str, Tensor] = {}
        for batch in batches:
            loss_sum, more = self.loss_of(batch)
            # Sharded gradients are averaged over the ranks, ours are to be summed.
            (loss_sum * self.world.size / labelled).backward()
            loss += loss_sum.detach()
            for name, value in more.items():
                others[name] = others.get(name, torch.zeros_like(loss)) + value.detach()
        gradients = gradients_of(self.optimizer)
        self.check_gradients(gradients, labelled=work.labelled, images=work.images)
        norm = gradient_norm(gradients.values())
        if self.cfg.clip_grad_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.cfg.clip_grad_norm, norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.scheduler is not None:
            self.scheduler.step()
        means = {name: self.world.sum(total) / labelled for name, total in {"loss": loss, **others}.items()}
        return Step(means.pop("loss"), norm, work, means)

    def is_due(self, every: int | None) -> bool:
        """Whether something that happens every so many steps, and after the last one, happens now."""
        step = self.progress.step
        return every is not None and (step % every == 0 or step == self.total_steps)

    def log_step(self, step: Step, rates: dict[str, float]) -> None:
        """Losses, gradient norm before clipping and learning rates of this step, and the meter's figures."""
        self.check_gradients.read()
        tensors = {"loss": step.loss, "grad_norm": step.grad_norm, **step.others}
        values = torch.stack([value.float() for value in tensors.values()]).tolist()  # one copy, one wait
        figures = dict(zip(tensors, values, strict=True))
        figures |= {f"lr_{part}": rate for part, rate in rates.items()} | self.meter.report()
        self.bar.set_postfix(loss=f"{figures['loss']:.4f}")
        if self.logger is not None:
            self.logger.log_dict(figures, step=self.progress.step)

    def log_validation(self, figures: dict[str, float]) -> None:
        """What was measured at a validation, to the logger and the terminal."""
        if self.logger is not None and figures:
            self.logger.log_dict(figures, step=self.progress.step)
            shown = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
            self.bar.write(f"step {self.progress.step}: {shown}")

    def save(self) -> Path:
        """Everything that a resumed run needs, in the folder that is returned."""
        return resume.save(
            self.output_dir,
            self.world,
            self.saved,
            self.optimizer,
            self.scheduler,
            self.progress,
            keep_last_n=self.cfg.keep_last_n,
            identity=self.identity,
        )
