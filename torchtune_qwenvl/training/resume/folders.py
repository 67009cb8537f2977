"""The `step_N/` folders of a run: which one to resume from, which to keep, and what killed runs have left.

step_40/              complete: it gets this name last
step_40.tmp/          being written
step_40.old.tmp/      being removed, or replaced by a new step_40/
step_40.aside/        of a run that was resumed from an earlier step; never removed
"""

import logging
import os
import re
from pathlib import Path

import torch

from torchtune_qwenvl import durable
from torchtune_qwenvl.distributed import World
from torchtune_qwenvl.training.resume.meta import ASIDE, META, check_files, read_meta

log = logging.getLogger(__name__)

LAST_WHOLE = "last_whole"
TEMPORARY, REPLACED = ".tmp", ".old.tmp"


def find(output_dir: Path, resume: bool | str, world: World | None = None) -> Path | None:
    """The folder to resume from, after a check of every file in it. All ranks must call.

    Args:
        output_dir: of the run.
        resume: True: the last `step_N/`, or None if there is none. "last_whole": the last one that holds
            what was written. A path: that folder. False: None.
        world: the ranks, which share the work and agree.

    Raises:
        ValueError: the folder does not hold what was written: names the file, and the newest older folder
            that is whole. Or `resume` is false and the folders of an earlier run are there.
    """
    world = world or World(torch.device("cpu"))
    if not resume:
        _refuse_earlier(step_folders(output_dir))
        return None
    folders = step_folders(output_dir)
    if not isinstance(resume, bool) and resume != LAST_WHOLE:
        named = Path(resume)
        if not named.is_dir() or not _is_step(named):
            raise ValueError(
                f"resume: expected a finished step_N folder of this recipe, with {META} in it, got "
                f"'{named}'. resume=true takes the last one of output_dir, resume={LAST_WHOLE} the last one "
                "that is whole."
            )
        folders = [path for path in step_folders(named.parent) if step_of(path) < step_of(named)] + [named]
    if not folders:
        return None
    last = folders.pop()
    reason = _problem(last, world)
    if reason is None:
        if resume is True:
            _refuse_strangers(last, folders)
        return last
    whole = next((folder for folder in reversed(folders) if _problem(folder, world) is None), None)
    if resume == LAST_WHOLE and whole is not None:
        log.warning(f"{reason}. So the run goes on from {whole}")
        return whole
    advice = (
        f"The newest older folder that is whole: resume={whole}, or resume={LAST_WHOLE}"
        if whole
        else "No older folder is whole: restore the file, or start a new run in another output_dir"
    )
    raise ValueError(f"{reason}. {advice}.")


def step_folders(output_dir: Path) -> list[Path]:
    """Everything called `step_N`, by number."""
    return sorted(filter(_is_step, output_dir.glob("step_*")), key=step_of)


def step_of(folder: Path) -> int:
    """The number in a folder's name."""
    return int(folder.name.removeprefix("step_"))


def commit(part: Path, folder: Path) -> None:
    """Give a finished folder its name; an older one of that name is replaced."""
    doomed = folder.with_name(folder.name + REPLACED)
    durable.remove(doomed)
    durable.sync_folder(part)
    if folder.exists():
        os.rename(folder, doomed)
    os.rename(part, folder)
    durable.sync_folder(folder.parent)
    durable.remove(doomed)


def prune(output_dir: Path, keep_last_n: int | None) -> None:
    """Remove all but the last folders."""
    if keep_last_n is None:
        return
    for folder in [path for path in step_folders(output_dir) if path.is_dir()][: -max(keep_last_n, 1)]:
        # Renamed first, so that a kill cannot leave half of it under its name.
        doomed = folder.with_name(folder.name + TEMPORARY)
        os.rename(folder, doomed)
        durable.remove(doomed)


def set_later_aside(output_dir: Path, step: int) -> None:
    """Rename folders of later steps: the run was resumed from an earlier one, and has gone another way."""
    for folder in step_folders(output_dir):
        if step_of(folder) > step:
            aside = folder.with_name(folder.name + ASIDE)
            durable.remove(aside)
            os.rename(folder, aside)
            log.warning(f"{folder} is of a later step than {step}, to which this run has come: now {aside}")


def clean(output_dir: Path) -> list[str]:
    """Remove what killed runs have left; only the owner of `output_dir` may. Returns the names."""
    left = sorted(path.name for path in output_dir.glob(f"step_*{TEMPORARY}"))
    for doomed in output_dir.glob(f"step_*{REPLACED}"):
        folder = doomed.with_name(doomed.name.removesuffix(REPLACED))
        if not folder.exists():  # killed between the two renames of `commit`
            os.rename(doomed, folder)
    for path in output_dir.glob(f"step_*{TEMPORARY}"):
        durable.remove(path)
    if output_dir.is_dir():
        durable.sync_folder(output_dir)
    return left + durable.clean_folders(output_dir)


def _is_step(path: Path) -> bool:
    return re.fullmatch(r"step_\d+", path.name) is not None


def _problem(folder: Path, world: World) -> str | None:
    """Why a folder cannot be resumed from, the same on all ranks; each has checked a part of the files."""
    reason = None
    try:
        if not folder.is_dir():
            raise ValueError(f"{folder}: expected a folder, found a file")
        meta = read_meta(folder)
        check_files(folder, meta, range(world.rank, meta.world_size, world.size))
    except ValueError as error:
        reason = str(error)
    return next((found for found in world.gather(reason) if found), None)


def _refuse_earlier(folders: list[Path]) -> None:
    if folders:
        raise ValueError(
            f"'{folders[-1]}' is there from an earlier run: resume it with resume=true, or start a new run "
            "in another output_dir (or remove the step_N folders)."
        )


def _refuse_strangers(last: Path, older: list[Path]) -> None:
    for folder in older:
        try:
            other = read_meta(folder).run
        except ValueError:
            continue
        if other != read_meta(last).run:
            raise ValueError(f"{last} and {folder} are of two runs: name the one to go on from, resume=PATH.")
