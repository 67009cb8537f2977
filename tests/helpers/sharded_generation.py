"""Generate with a sharded tiny model whose ranks other than 0 compute other logits."""

from pathlib import Path
from typing import Any

from launch import FORKS, HANGS_AFTER, free_port, take_place


def generate_on_ranks(folder: Path, samples: list[dict[str, Any]], size: int, **options: Any) -> list[Any]:
    """The new tokens of every row, for each rank."""
    port = free_port()
    pipes = [FORKS.Pipe(duplex=False) for _ in range(size)]
    ranks = [
        FORKS.Process(target=_rank, args=(rank, size, port, pipe, folder, samples, options))
        for rank, (_, pipe) in enumerate(pipes)
    ]
    for process in ranks:
        process.start()
    for _, pipe in pipes:
        pipe.close()  # so that a killed rank causes an EOFError here
    rows = [ours.recv() if ours.poll(timeout=HANGS_AFTER) else "hangs" for ours, _ in pipes]
    for process in ranks:
        process.kill()
    return rows


def _rank(rank: int, size: int, port: int, pipe: Any, folder: Path, samples: Any, options: Any) -> None:
    take_place(rank, size, port)
    import torch

    from torchtune_qwenvl import load_model
    from torchtune_qwenvl.distributed import join_world, leave_world, shard
    from torchtune_qwenvl.generation import generate

    torch.set_num_threads(1)
    world = join_world("cpu")
    model = load_model(folder).eval()
    shard(model, world, torch.float32)
    if not world.is_main:
        model.register_forward_hook(lambda module, inputs, logits: -logits)
    pipe.send(generate(model, samples, **options))
    leave_world()
