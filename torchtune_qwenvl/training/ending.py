"""The end of a run: nothing that was trained is lost, and nothing stays open."""

from collections.abc import Iterator
from contextlib import contextmanager

from torchtune_qwenvl.distributed import leave_world
from torchtune_qwenvl.training import resume
from torchtune_qwenvl.training.loop import TrainingLoop


@contextmanager
def keeping_what_was_trained(run: TrainingLoop, way_on: str) -> Iterator[None]:
    """If the result cannot be written inside, save a `step_N/` folder, and say so.

    Args:
        run: whose result it is.
        way_on: what makes the result of that folder.

    Raises:
        ValueError: it could not be written, and where what was trained is now. On all ranks.
    """
    try:
        yield
    except ValueError as error:
        folder = run.output_dir / f"step_{run.progress.step}"
        try:
            folder = folder if (folder / resume.META).is_file() else run.save()
        except ValueError as second:
            raise ValueError(f"{error}\nWhat was trained could not be saved either: {second}") from error
        raise ValueError(f"{error}\nWhat was trained is in {folder}: go on by {way_on}") from error


def close(run: TrainingLoop) -> None:
    """End what the setup began: the log, the lock on `output_dir`, the ranks."""
    if run.logger is not None:
        run.logger.close()
    if run.lock is not None:
        run.lock.release()
    leave_world()
