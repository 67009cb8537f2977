"""Where the epochs of a run begin and end. A stream's end is known only once all ranks have reached it."""

import math

from torchtune.utils import get_logger

from torchtune_qwenvl.counted import counted
from torchtune_qwenvl.data.loader import Loader
from torchtune_qwenvl.distributed import World
from torchtune_qwenvl.training.resume.progress import Progress

log = get_logger("INFO")


class Epochs:
    """Counts the optimizer steps of each epoch. With packing the number differs from epoch to epoch.

    Call `go_on` first; it counts.

    Args:
        loader: of the training data.
        world: whose ranks train together.
        epochs: number of epochs.
        batches_per_step: micro-batches of an optimizer step (gradient_accumulation_steps).
        max_steps: an epoch ends after this many steps (max_steps_per_epoch); None reads all of the data.

    Attributes:
        steps: of each epoch.
        planned_steps: of a whole run.
    """

    def __init__(
        self,
        loader: Loader,
        world: World,
        *,
        epochs: int,
        batches_per_step: int = 1,
        max_steps: int | None = None,
    ) -> None:
        self.loader, self.world = loader, world
        self.max_steps, self.batches_per_step = max_steps, batches_per_step
        self.epochs = epochs
        self.steps: list[int] = []
        self.planned_steps = 0

    def _count(self, epoch: int) -> int:
        if self.max_steps and self.loader.is_stream:
            return self.max_steps
        self.loader.set_epoch(epoch)
        steps = math.ceil(len(self.loader) / self.batches_per_step)
        return min(steps, self.max_steps or steps)

    def total_steps(self, progress: Progress) -> int:
        """Steps of the whole run; fewer than planned if a stream has ended early."""
        return progress.epoch_start + sum(self.steps[progress.epoch :])

    def go_on(self, progress: Progress) -> None:
        """Count all epochs; of a resumed run's epoch the rest, from the first sample that no step has seen.

        Its batches may be larger or smaller than those before.

        Raises:
            ValueError: a stream, whose length is unknown, without `max_steps`; or another place in the data
                than these data have.
        """
        if progress.data:
            # Before epochs are counted: packed rows stay those that the run began with.
            self.loader.load_state_dict(progress.data)
            progress.data = self.loader.state_dict()
        self.steps = [self._count(epoch) for epoch in range(self.epochs)]
        self.planned_steps = sum(self.steps)
        if not progress.data or progress.epoch >= len(self.steps):
            return
        self.loader.load_state_dict(progress.data)
        if not self.loader.is_stream:
            done = progress.step - progress.epoch_start
            steps = done + math.ceil(len(self.loader) / self.batches_per_step)
            self.steps[progress.epoch] = max(done, min(steps, self.max_steps or steps))

    def schedule_steps(self, progress: Progress) -> int:
        """Steps that a learning rate schedule spans: as the run began with, unless settings have changed
        them."""
        if progress.planned_steps != self.planned_steps:
            progress.planned_steps = self.planned_steps
            progress.schedule_steps = self.total_steps(progress)
        return progress.schedule_steps

    def begin(self, epoch: int, progress: Progress) -> None:
        """Go to the first sample of the epoch that no step has seen."""
        self.loader.set_epoch(epoch)
        if progress.data and epoch == progress.epoch:
            self.loader.load_state_dict(progress.data)
        else:
            progress.epoch, progress.epoch_start = epoch, progress.step

    def is_over(self, progress: Progress) -> bool:
        """Whether the epoch ends here. For a stream the ranks decide together, so all must call."""
        steps, done = self.steps[progress.epoch], progress.step - progress.epoch_start
        if done < steps and self.loader.is_stream and not self.world.any(self.loader.more):
            self.steps[progress.epoch] = done
            if self.world.is_main:
                log.warning(
                    f"epoch {progress.epoch}: the stream ended after {done} of {counted(steps, 'step')} "
                    "(max_steps_per_epoch); every sample of it has been read"
                )
        return done >= self.steps[progress.epoch]
