"""What all recipes do before their first step and say at it."""

from abc import abstractmethod
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig
from torchtune.config import instantiate

from torchtune_qwenvl.distributed import join_world
from torchtune_qwenvl.modules.attention import use_attention_backend
from torchtune_qwenvl.training import resume
from torchtune_qwenvl.training.epochs import Epochs
from torchtune_qwenvl.training.loop import TrainingLoop
from torchtune_qwenvl.training.step.optim import build_scheduler
from torchtune_qwenvl.training.step.precision import autocast, compute_dtype
from torchtune_qwenvl.training.watch.history import History


class Recipe(TrainingLoop):
    """A training loop with the set-up that recipes have in common.

    Args:
        cfg: the resolved config.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg
        self.world = join_world(cfg.device)
        use_attention_backend(cfg.attention_backend)
        self.output_dir = Path(cfg.output_dir)
        self.compute = compute_dtype(cfg.dtype)
        self.autocast = partial(autocast, self.world.device, self.compute)

    @abstractmethod
    def setup(self) -> None:
        """Build everything that a step needs."""

    @abstractmethod
    def finish(self) -> None:
        """Write the results."""

    def dry_run(self) -> None:
        """Measure instead of training; under `dry_run: true`."""
        raise ValueError("This recipe has no dry run.")

    def prepare(self) -> None:
        """Call the components of `prepare:` on rank 0, and seed torch alike on all ranks."""
        if self.world.is_main:
            for component in self.cfg.prepare:
                instantiate(component)
        self.world.barrier()
        torch.manual_seed(self.cfg.seed)

    def take_output_dir(self) -> resume.Saved | None:
        """Lock `output_dir`; returns the saved step to resume from, or None.

        Raises:
            ValueError: the folder cannot be written or is another run's, or the saved step does not fit the
                config.
        """
        self.identity = resume.Identity.of(self.cfg)
        self.lock, saved = resume.begin(self.cfg, self.world, self.identity)
        return saved

    def begin(self, saved: resume.Saved | None) -> None:
        """Set `epochs`, `scheduler` and `progress`; model, optimizer and loader are there.

        Args:
            saved: what to resume from, or None.
        """
        cfg, world = self.cfg, self.world
        self.progress = saved.progress() if saved else resume.Progress()
        self.epochs = Epochs(
            self.loader,
            world,
            epochs=cfg.epochs,
            batches_per_step=cfg.gradient_accumulation_steps,
            max_steps=cfg.max_steps_per_epoch,
        )
        self.epochs.go_on(self.progress)
        steps = self.epochs.schedule_steps(self.progress)
        self.scheduler = build_scheduler(cfg.lr_scheduler, self.optimizer, steps)
        # From here on, random numbers (dropout) differ between ranks.
        torch.manual_seed(cfg.seed + world.rank)
        if saved is not None:
            saved.restore(self.saved, self.optimizer, self.scheduler, self.progress)

    def open_logs(self, saved: resume.Saved | None) -> None:
        """Start the history of a run, or go on with that of a resumed one, and log the config."""
        folder = saved.folder if saved else None
        self.logger = History(
            instantiate(self.cfg.metric_logger), self.output_dir, self.progress.step, folder
        )
        self.logger.log_config(self.cfg)
