"""Where the epochs of a run begin and end. The end of a stream is known when it has come, on all ranks."""

import math

from omegaconf import DictConfig
from torchtune.utils import get_logger

from torchtune_qwenvl.data.loader import Loader
from torchtune_qwenvl.distributed import World
from torchtune_qwenvl.training.resume import Progress

log = get_logger("INFO")


class Epochs:
    """Optimizer steps of each epoch; packed rows, and so steps, differ in number from epoch to epoch.

    Args:
        loader: of the training data.
        world: whose ranks train together.
        cfg: its epochs, max_steps_per_epoch and gradient_accumulation_steps count.

    Raises:
        ValueError: a stream, of which nobody knows the length, without max_steps_per_epoch.
    """

    def __init__(self, loader: Loader, world: World, cfg: DictConfig) -> None:
        self.loader, self.world = loader, world
        self.most, self.batches_per_step = cfg.max_steps_per_epoch, cfg.gradient_accumulation_steps
        self.steps = [self._count(epoch) for epoch in range(cfg.epochs)]

    def _count(self, epoch: int) -> int:
        if self.most and self.loader.is_stream:
            return self.most
        self.loader.set_epoch(epoch)
        steps = math.ceil(len(self.loader) / self.batches_per_step)
        return min(steps, self.most or steps)

    def total_steps(self, progress: Progress) -> int:
        """Steps of the whole run: fewer than planned where a stream has ended early."""
        return progress.epoch_start + sum(self.steps[progress.epoch :])

    def begin(self, epoch: int, progress: Progress) -> None:
        """Go to the first sample of the epoch that no step has seen."""
        self.loader.set_epoch(epoch)
        if progress.data and epoch == progress.epoch:
            self.loader.load_state_dict(progress.data)
        else:
            progress.epoch, progress.epoch_start = epoch, progress.step

    def is_over(self, progress: Progress) -> bool:
        """Whether the epoch ends here; for a stream the ranks agree on it, and all must ask."""
        steps, done = self.steps[progress.epoch], progress.step - progress.epoch_start
        if done < steps and self.loader.is_stream and not self.world.any(self.loader.more):
            self.steps[progress.epoch] = done
            if self.world.is_main:
                log.warning(
                    f"epoch {progress.epoch}: the stream ended after {done} of {steps} steps "
                    "(max_steps_per_epoch); every sample of it has been read"
                )
        return done >= self.steps[progress.epoch]
