"""Writing `step_N/`: each rank its own file, then rank 0 run.json with the digests of all of them."""

from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from torchtune_qwenvl import durable
from torchtune_qwenvl.checkpoints.folder import check_disk_space
from torchtune_qwenvl.distributed import World, local
from torchtune_qwenvl.modules.batch import map_tensors
from torchtune_qwenvl.training.resume.digests import DigestFile
from torchtune_qwenvl.training.resume.folders import TEMPORARY, commit, prune, set_later_aside
from torchtune_qwenvl.training.resume.identity import Identity
from torchtune_qwenvl.training.resume.meta import META, Meta, rank_file
from torchtune_qwenvl.training.resume.optimizer import optimizer_state, trainable
from torchtune_qwenvl.training.resume.progress import Progress
from torchtune_qwenvl.training.step.optim_in_bwd import OptimizerInBackward


def save(
    output_dir: Path,
    world: World,
    model: nn.Module,
    optimizer: Optimizer | OptimizerInBackward,
    scheduler: LRScheduler | None,
    progress: Progress,
    keep_last_n: int | None = None,
    identity: Identity | None = None,
) -> Path:
    """Write `output_dir/step_N/` and return it. All ranks must call.

    Args:
        output_dir: of the run.
        world: the ranks; each writes its own file.
        model: whose trainable parameters are saved.
        optimizer: over these.
        scheduler: of its rates, or None.
        progress: how far the run has come.
        keep_last_n: how many folders stay; None: all.
        identity: the run's; None makes a new one.

    Raises:
        ValueError: a file cannot be written; on all ranks.
    """
    identity = identity or Identity()
    folder = output_dir / f"step_{progress.step}"
    part = folder.with_name(folder.name + TEMPORARY)
    state = {
        "scheduler": scheduler.state_dict() if scheduler else None,
        "rng": _random_state(world),
        "data": progress.data,
    }
    if world.rank < world.shards:  # the others have copies of it
        state["parameters"] = {name: local(p.detach()) for name, p in trainable(model).items()}
        state["optimizer"] = map_tensors(optimizer_state(optimizer, model), local)
    with world.together():
        if world.is_main:
            _make_room(output_dir, part, world.shards * _nbytes(state))
    try:
        with world.together():
            facts = _write(part / rank_file(world.rank), state)
        files = {rank_file(rank): found for rank, found in enumerate(world.gather(facts))}
        with world.together():
            if world.is_main:
                meta = Meta(
                    identity.run,
                    world.size,
                    world.shards,
                    world.device.type,
                    progress,
                    files,
                    identity.settings,
                    identity.content,
                    identity.samples,
                )
                with durable.saying_what(folder):
                    durable.write_file(part / META, meta.to_json())
                    commit(part, folder)
                    set_later_aside(output_dir, progress.step)
                    prune(output_dir, keep_last_n)
    except ValueError:
        if world.is_main:
            durable.remove(part)
        raise
    return folder


def _make_room(output_dir: Path, part: Path, nbytes: int) -> None:
    """An empty folder to write into, if the disk takes what comes."""
    durable.make_folder(output_dir)
    # The files with shards have about the same size, and are often on one disk.
    check_disk_space(output_dir, nbytes)
    with durable.saying_what(part):
        for stale in output_dir.glob(f"step_*{TEMPORARY}"):
            durable.remove(stale)
        part.mkdir()


def _write(path: Path, state: dict[str, Any]) -> dict[str, Any]:
    with durable.saying_what(path):
        with DigestFile(path) as file:
            torch.save(state, cast(IO[bytes], file))
        return file.facts()


def _random_state(world: World) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if world.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(world.device)
    return state


def _nbytes(tree: Any) -> int:
    if isinstance(tree, (dict, list)):
        return sum(map(_nbytes, tree.values() if isinstance(tree, dict) else tree))
    return tree.nbytes if isinstance(tree, Tensor) else 0
