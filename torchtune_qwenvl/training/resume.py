"""Saves a run to folders `step_N/`, and resumes it from there as if it had never stopped, to the last bit.

Each rank writes its own part: its shards of the trainable parameters (the fp32 masters) and of the
optimizer's state, its random number state, and its place in the data. Frozen weights come from the checkpoint
folder.

    step_40.tmp/rank_0.pt rank_1.pt      all ranks write, flush to disk, and wait for each other
    step_40/                             rank 0 renames: a folder with this name is always complete
"""

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from torchtune_qwenvl.checkpoints.folder import check_disk_space
from torchtune_qwenvl.distributed import World, like, local
from torchtune_qwenvl.modules.batch import map_tensors
from torchtune_qwenvl.training.step.optim_in_bwd import OptimizerInBackward

META = "run.json"


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        step: optimizer steps done.
        epoch: of the last batch, counted from 0.
        epoch_start: steps done before this epoch.
        empty_steps: how many of `step` had no sample, so that nothing was updated.
        nonfinite_steps: how many of `step` were skipped because of NaN or infinity (on_nonfinite=skip).
        data: this rank's place in the data, from the loader's `state_dict()`; None at the start.
    """

    step: int = 0
    epoch: int = 0
    epoch_start: int = 0
    empty_steps: int = 0
    nonfinite_steps: int = 0
    data: dict[str, Any] | None = None


def save(
    output_dir: Path,
    world: World,
    model: nn.Module,
    optimizer: Optimizer | OptimizerInBackward,
    scheduler: LRScheduler | None,
    progress: Progress,
    keep_last_n: int | None = None,
) -> Path:
    """Write `output_dir/step_N/` and return it. All ranks must call."""
    folder = output_dir / f"step_{progress.step}"
    part = folder.with_name(f"{folder.name}.tmp")
    state = {
        "parameters": {name: local(p.detach()) for name, p in _trainable(model).items()},
        "optimizer": map_tensors(optimizer.state_dict(), local),
        "scheduler": scheduler.state_dict() if scheduler else None,
        "rng": _random_state(world),
        "data": progress.data,
    }
    if world.is_main:
        # The ranks' parts have about the same size, and are often on one disk.
        check_disk_space(output_dir, world.size * _nbytes(state))
        for stale in output_dir.glob("step_*.tmp"):
            shutil.rmtree(stale)
        part.mkdir(parents=True)
        where = {key: value for key, value in vars(progress).items() if key != "data"}
        meta = {"world_size": world.size, "progress": where}
        _write(part / META, json.dumps(meta, indent=2).encode())
    world.barrier()
    with open(part / f"rank_{world.rank}.pt", "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    world.barrier()
    if world.is_main:
        _remove(folder)
        os.rename(part, folder)
        _sync_folder(output_dir)
        _prune(output_dir, keep_last_n)
    world.barrier()
    return folder


def find(output_dir: Path, resume: bool | str) -> Path | None:
    """The folder to resume from: the one named, or the last `step_N/`. None starts from the beginning.

    Raises:
        ValueError: the named folder is not a `step_N` folder, or a new run would mix its folders with those
            of an earlier run.
    """
    last = max(_complete(output_dir), key=_step_of, default=None)
    if resume is True:
        return last
    if not resume:
        if last is not None:
            raise ValueError(
                f"'{last}' is there from an earlier run: resume it with resume=true, or start a new run in "
                "another output_dir (or remove the step_N folders)."
            )
        return None
    folder = Path(resume)
    if not (folder / META).is_file() or folder.suffix == ".tmp":
        raise ValueError(
            f"resume: expected a finished step_N folder of this recipe, with {META} in it, got '{folder}'. "
            "resume=true takes the last one of output_dir."
        )
    return folder


def load(
    folder: Path,
    world: World,
    model: nn.Module,
    optimizer: Optimizer | OptimizerInBackward,
    scheduler: LRScheduler | None,
) -> Progress:
    """Restore a saved state, random numbers last. All ranks must call.

    Raises:
        ValueError: the number of processes, the trainable parameters, the scheduler or optimizer_in_bwd
            differ from those of the run.
    """
    meta = json.loads((folder / META).read_text())
    if meta["world_size"] != world.size:
        raise ValueError(
            f"{folder} was written by {meta['world_size']} process(es), this run has {world.size}: each "
            f"reads its own part, so resume with --nproc_per_node {meta['world_size']} (over all nodes)."
        )
    state = torch.load(folder / f"rank_{world.rank}.pt", map_location="cpu", weights_only=True)
    parameters = _trainable(model)
    if different := sorted(state["parameters"].keys() ^ parameters.keys()):
        raise ValueError(
            f"{folder} holds other trainable parameters than this model; {len(different)} differ, "
            f"'{different[0]}' first. Resume with the model: section that the run began with."
        )
    if (state["scheduler"] is None) != (scheduler is None):
        raise ValueError(
            f"{folder}: the run was saved {'with' if scheduler is None else 'without'} an lr_scheduler."
        )
    if ("param_groups" in state["optimizer"]) == isinstance(optimizer, OptimizerInBackward):
        raise ValueError(f"{folder}: the run was saved with another optimizer_in_bwd; resume with the same.")
    with torch.no_grad():
        for name, parameter in parameters.items():
            local(parameter).copy_(state["parameters"][name])
    optimizer.load_state_dict(_shard_state(state["optimizer"], optimizer))
    if scheduler is not None:
        scheduler.load_state_dict(state["scheduler"])
    torch.set_rng_state(state["rng"]["cpu"])
    if world.device.type == "cuda":
        torch.cuda.set_rng_state(state["rng"]["cuda"], world.device)
    return Progress(**meta["progress"], data=state["data"])


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _shard_state(state: dict, optimizer: Optimizer | OptimizerInBackward) -> dict:
    """Saved optimizer state, sharded again like the parameters if it has the shape of their shards."""
    if isinstance(optimizer, OptimizerInBackward):
        return {name: _shard_state(one, optimizer.optim_map[name]) for name, one in state.items()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def restore(index: int, value: Any) -> Any:
        reference = parameters[index]
        if isinstance(value, Tensor) and value.dim() and value.shape == local(reference).shape:
            return like(value, reference)
        return value

    per_parameter = {
        index: {key: restore(index, value) for key, value in entries.items()}
        for index, entries in state["state"].items()
    }
    return {"state": per_parameter, "param_groups": state["param_groups"]}


def _random_state(world: World) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if world.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(world.device)
    return state


def _nbytes(tree: Any) -> int:
    if isinstance(tree, (dict, list)):
        return sum(map(_nbytes, tree.values() if isinstance(tree, dict) else tree))
    return tree.nbytes if isinstance(tree, Tensor) else 0


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))


def _complete(output_dir: Path) -> list[Path]:
    names = [path for path in output_dir.glob("step_*") if re.fullmatch(r"step_\d+", path.name)]
    return [path for path in names if (path / META).is_file()]


def _prune(output_dir: Path, keep_last_n: int | None) -> None:
    if keep_last_n is None:
        return
    for folder in sorted(_complete(output_dir), key=_step_of)[: -max(keep_last_n, 1)]:
        _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a folder. It is renamed first, so that a kill cannot leave half of it under its name."""
    if folder.exists():
        doomed = folder.with_name(f"{folder.name}.old.tmp")
        os.rename(folder, doomed)
        shutil.rmtree(doomed)


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Write a folder to disk, so that a rename in it survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
