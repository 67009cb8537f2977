"""What a run does first: lock its folder, look for places that cannot be written, find what to resume."""

from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from torchtune_qwenvl import durable
from torchtune_qwenvl.distributed import World
from torchtune_qwenvl.processes import end_with_launcher
from torchtune_qwenvl.training.resume.folders import find
from torchtune_qwenvl.training.resume.identity import Identity
from torchtune_qwenvl.training.resume.lock import Lock, own
from torchtune_qwenvl.training.resume.reading import Saved, read

FILES = ("metrics.jsonl", "curves.png")
FOLDERS = ("model", "adapter", "lengths", "answers")
PROBE = ".probe"


def begin(cfg: DictConfig, world: World, identity: Identity) -> tuple[Lock | None, Saved | None]:
    """Own `output_dir`, and open the folder to resume from. All ranks must call, before the model is built.

    Args:
        cfg: of the run.
        world: the ranks.
        identity: of the run; gets the id of the run that is resumed.

    Returns:
        The lock, held by rank 0 until the process ends or releases it, and what to go on from.

    Raises:
        ValueError: another run writes there, something is in the way, or the folder to resume from cannot be
            used. All ranks raise.
    """
    end_with_launcher()
    output_dir = Path(cfg.output_dir)
    lock = own(output_dir, world)
    try:
        with world.together():
            if world.is_main:
                check_places(output_dir, cfg.metric_logger.get("log_dir"))
        folder = find(output_dir, cfg.resume, world)
        saved = read(folder, world, identity, cfg.accept_changed_data) if folder else None
        if world.is_main and saved is None:
            _ = identity.content, identity.samples  # as it is before anything is read from it
    except BaseException:
        if lock is not None:
            lock.release()
        raise
    return lock, saved


def check_places(output_dir: Path, log_dir: str | None) -> None:
    """Raise one ValueError that names everything that stands where the run will write."""
    blocked = [
        *(f"{output_dir / name} is a folder" for name in FILES if (output_dir / name).is_dir()),
        *(f"{output_dir / name} is a file" for name in FOLDERS if _is_no_folder(output_dir / name)),
        *(f"{path} is a file" for path in output_dir.glob("step_*") if _is_no_folder(path)),
    ]
    if blocked:
        raise ValueError(
            f"{'; '.join(blocked)}: it is where this run writes. Remove it, or choose another output_dir"
        )
    for folder in _folders(output_dir, log_dir):
        durable.make_folder(folder)
        durable.write_file(folder / PROBE, b"")
        durable.remove(folder / PROBE)


def _folders(output_dir: Path, log_dir: str | None) -> Iterator[Path]:
    yield output_dir
    if log_dir is not None:
        yield Path(log_dir)


def _is_no_folder(path: Path) -> bool:
    return path.exists() and not path.is_dir()
