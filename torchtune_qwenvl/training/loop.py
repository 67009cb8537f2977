"""The steps of a run, from where it stands to its end: what all recipes have in common.

A recipe sets up what is listed below, and says what a batch holds (`work_of`), what its loss is (`loss_of`),
and what is done at a validation (`validate`).
"""

from abc import abstractmethod
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from torch import nn
from torchtune.utils import get_logger
from tqdm import tqdm

from torchtune_qwenvl.data.loader import Loader
from torchtune_qwenvl.training import resume
from torchtune_qwenvl.training.epochs import Epochs
from torchtune_qwenvl.training.one_step import TakesSteps
from torchtune_qwenvl.training.profiling import build_profiler
from torchtune_qwenvl.training.resume.folders import step_folders
from torchtune_qwenvl.training.step.nonfinite import check_finite
from torchtune_qwenvl.training.step.optim import current_learning_rates
from torchtune_qwenvl.training.watch.history import History
from torchtune_qwenvl.training.watch.metrics import Meter, Step
from torchtune_qwenvl.training.watch.tally import Tally

log = get_logger("INFO")
# Counters of the steps that changed nothing: without samples, and skipped because of NaN or infinity.
UNTAKEN = ("empty_steps", "nonfinite_steps")


class TrainingLoop(TakesSteps):
    """Base of the recipes.

    Attributes:
        loader: this rank's batches.
        epochs: where each epoch ends.
        meter: of speed and memory.
        logger: keeps the figures; None on other ranks than 0, and in a dry run.
        nothing_trained: what an epoch without a single label is an error of.
    """

    loader: Loader
    epochs: Epochs
    meter: Meter
    logger: History | None = None
    nothing_trained = "trained on no token at all: there is no sample, or every sample was skipped"

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
        """All epochs, from where the progress stands.

        Raises:
            Stopped: a signal has asked any rank to stop.
        """
        bar = tqdm(total=self.total_steps, initial=self.progress.step, disable=not self.world.is_main)
        self.tally = Tally(self.progress.step)
        with bar as self.bar, build_profiler(self.cfg.profiler) as self.profiler, self.signals.noted():
            for epoch in range(self.progress.epoch, self.cfg.epochs):
                self.train_epoch(epoch)
            if self.world.any(self.signals.received is not None):
                self.stop()

    def train_epoch(self, epoch: int) -> None:
        """The steps of an epoch, from the first sample that no step has seen."""
        self.epochs.begin(epoch, self.progress)
        batches, over = iter(self.loader), self.epochs.is_over(self.progress)
        first_step, taken = self.progress.step, 0
        while not over:
            with self.meter.waiting():
                step_batches = list(islice(batches, self.cfg.gradient_accumulation_steps))
            rates = current_learning_rates(self.optimizer)
            step = self.step(step_batches)
            self.progress.step += 1
            self.progress.data = self.loader.state_dict()
            over = self.epochs.is_over(self.progress)
            taken += step.taken
            self.count(step)
            self.bar.update()
            self.profiler.step()
            if step.taken and self.is_due(self.cfg.log_every_n_steps):
                self.log_step(step, rates)
            if step.asked_to_stop:
                self.stop()
            with self.meter.paused():
                if self.is_due(self.cfg.save_every_n_steps):
                    self.check_gradients.read()
                if self.is_due(self.cfg.run_val_every_n_steps):
                    self.validate()
                if self.is_due(self.cfg.save_every_n_steps):
                    self.save()
        if self.progress.step > first_step and not taken:
            raise ValueError(
                f"epoch {epoch} {self.nothing_trained}. The reasons are logged above; on_bad_sample=raise "
                "stops at the first bad sample, on_nonfinite=raise at the first NaN or infinity."
            )

    def count(self, step: Step) -> None:
        """Add a step to all counters."""
        self.meter.add(step.work)
        self.tally.add(step)
        if not step.taken:
            name = UNTAKEN[bool(step.work.labelled)]
            setattr(self.progress, name, getattr(self.progress, name) + 1)

    def stop(self) -> None:
        """Save, if the config says so, and end the run.

        Raises:
            Stopped: always.
        """
        if self.cfg.save_on_signal and self.save_folder not in step_folders(self.output_dir):
            self.save()
        done = f"after step {self.progress.step} of {self.total_steps}"
        raise self.signals.stopped(f"{done}. {self.last_saved()} Add resume=true to the command to go on.")

    def is_due(self, every: int | None) -> bool:
        """Whether something that happens every so many steps, and after the last one, happens now."""
        step = self.progress.step
        return every is not None and (step % every == 0 or step == self.total_steps)

    def log_step(self, step: Step, rates: dict[str, float]) -> None:
        """Losses, gradient norm before clipping and learning rates of this step, and the meter's figures."""
        self.check_gradients.read()
        figures = {"loss": step.loss.item(), "grad_norm": step.grad_norm.item()}
        figures |= {name: value.item() for name, value in step.others.items()}
        figures |= {f"lr_{part}": rate for part, rate in rates.items()} | self.meter.report()
        counts = {name: getattr(self.progress, name) for name in UNTAKEN}
        figures |= {name: count for name, count in counts.items() if count}
        self.bar.set_postfix(loss=f"{figures['loss']:.4f}")
        if self.logger is not None:
            self.logger.log_dict(figures, step=self.progress.step)

    def say_end(self, files: Mapping[str, Path]) -> None:
        """Print what was trained and left out, and where the results are. All ranks must call."""
        notes = {name: getattr(self.progress, name) for name in UNTAKEN}
        lines = self.tally.lines(self.progress.step, self.loader.skipped, self.world, notes, files)
        if self.world.is_main:
            log.info("\n".join(lines))

    def log_validation(self, figures: dict[str, float]) -> None:
        """What was measured at a validation, to the logger and the terminal."""
        if self.logger is not None and figures:
            self.logger.log_dict(figures, step=self.progress.step)
            shown = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
            self.bar.write(f"step {self.progress.step}: {shown}")

    @property
    def save_folder(self) -> Path:
        """Where the present step is saved."""
        return self.output_dir / f"step_{self.progress.step}"

    def save(self) -> Path:
        """Everything that a resumed run needs, in the folder that is returned.

        Raises:
            ValueError: a trained weight is not finite; older folders stay as they are.
        """
        check_finite(self.saved, self.world, f"{self.save_folder}")
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
