"""Steps of the recipe's precision and sharding around a tiny model, on one process or several."""

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from launch import FORKS, HANGS_AFTER, free_port, take_place
from torch import Tensor

STEPS = 2


@dataclass(frozen=True)
class Case:
    """What a model trains, and how.

    Attributes:
        size: number of processes.
        dtype: compute dtype.
        copies: of the model.
        arguments: of the builder.
    """

    size: int
    dtype: torch.dtype
    copies: int = 1
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Outcome:
    """What a case gave.

    Attributes:
        losses: of each step, over all ranks.
        before, after: {name: trained parameter}, whole, before the first and after the last step.
        dtypes: {name: dtype} of this rank's shards.
        mesh: {axis: length} of what a parameter is sharded over.
    """

    losses: list[float]
    before: dict[str, Tensor]
    after: dict[str, Tensor]
    dtypes: dict[str, torch.dtype]
    mesh: dict[str, int]


def take_steps(
    folder: Path, samples: Sequence[Any], pad_id: int, case: Case, world: Any, rate: float
) -> Outcome:
    """Steps of SGD on all samples, of which each rank takes its share."""
    from torch.distributed.tensor import DTensor

    from torchtune_qwenvl import load_model
    from torchtune_qwenvl.data import collate
    from torchtune_qwenvl.distributed import shard, whole
    from torchtune_qwenvl.training.step.precision import autocast, set_parameter_dtypes

    torch.manual_seed(0)
    model = load_model(folder, torch.float32, **case.arguments).train()
    set_parameter_dtypes(model, case.dtype)
    shard(model, world, case.dtype)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: whole(p.detach()).clone() for name, p in trained.items()}
    optimizer = torch.optim.SGD(trained.values(), lr=rate)
    labelled = sum(int((torch.tensor(sample["labels"][1:]) != -100).sum()) for sample in samples)
    losses = []
    for _ in range(STEPS):
        batch = collate(list(samples[world.rank :: world.size]), pad_id)
        with autocast(torch.device("cpu"), case.dtype):
            loss_sum, _ = model(**batch)
        (loss_sum * world.size / labelled).backward()
        losses.append(world.sum(loss_sum.detach().clone()).item() / labelled)
        optimizer.step()
        optimizer.zero_grad()
    some = next(iter(trained.values()))
    mesh = some.device_mesh if isinstance(some, DTensor) else None
    return Outcome(
        losses,
        before,
        {name: whole(p.detach()).clone() for name, p in trained.items()},
        {name: p.dtype for name, p in trained.items()},
        dict(zip(mesh.mesh_dim_names, mesh.shape, strict=True)) if mesh else {},
    )


def on_ranks(
    folder: Path, samples: Sequence[Any], pad_id: int, cases: Sequence[Case], rate: float
) -> list[Outcome]:
    """The outcome of each case on rank 0; a process is started only once for all cases."""
    ports = [free_port() for _ in cases]
    ours, theirs = FORKS.Pipe(duplex=False)
    ranks = [
        FORKS.Process(target=_rank, args=(rank, ports, theirs, folder, samples, pad_id, cases, rate))
        for rank in range(max(case.size for case in cases))
    ]
    for process in ranks:
        process.start()
    theirs.close()
    try:
        return [pickle.loads(ours.recv_bytes()) for _ in cases if ours.poll(timeout=HANGS_AFTER)]
    finally:
        for process in ranks:
            process.kill()


def _rank(
    rank: int,
    ports: Sequence[int],
    pipe: Any,
    folder: Path,
    samples: Any,
    pad_id: int,
    cases: Sequence[Case],
    rate: float,
) -> None:
    from torchtune_qwenvl.distributed import join_world, leave_world

    torch.set_num_threads(1)
    for case, port in zip(cases, ports, strict=True):
        if rank < case.size:
            take_place(rank, case.size, port)
            world = join_world("cpu", {"data_parallel_replicate_degree": case.copies})
            outcome = take_steps(folder, samples, pad_id, case, world, rate)
            if rank == 0:
                pipe.send_bytes(pickle.dumps(outcome))  # `send` would share the tensors' memory
            leave_world()
