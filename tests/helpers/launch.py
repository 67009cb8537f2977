"""Run the recipe in one or several new processes without importing everything each time.

A fork server imports the recipe once, and every rank of every run is forked from it. To test crashes, a
process can kill itself (SIGKILL) at a given point of the run.
"""

import importlib
import multiprocessing
import os
import re
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        f"torchtune_qwenvl.{name}"
        for name in ("recipes.finetune", "recipes.train_vit", "cli.main", "vision.index")
    ]
)

HANGS_AFTER = 300  # seconds; compiling can take over a hundred on a busy machine

# All kinds of trainable parts at once: LoRA with dropout in both towers, and a fully trained merger.
LORA = (
    "model.encoder_trainable=lora",
    "model.fusion_trainable=full",
    "model.decoder_trainable=lora",
    "model.lora_attn_modules=[q_proj,v_proj]",
    "model.apply_lora_to_mlp=true",
    "model.lora_rank=4",
    "model.lora_alpha=8",
    "model.lora_dropout=0.1",
)


@dataclass
class Run:
    """A finished run: exit code of each rank (-9: killed), printed text, and output folder."""

    codes: list[int]
    printed: str
    output_dir: Path

    @property
    def log(self) -> str:
        """The text of all log files."""
        return "".join(path.read_text() for path in sorted(self.output_dir.glob("logs/*.txt")))

    def values(self, name: str) -> dict[int, str]:
        """{step: printed value} of one metric."""
        return {int(s): v for s, v in re.findall(rf"^Step (\d+) \|.*?\b{name}:(\S+)", self.log, re.M)}


def run(
    output_dir: Path,
    *overrides: str,
    config: str | Path,
    processes: int = 1,
    kill_at: str = "",
    environment: Mapping[str, str] = MappingProxyType({}),
    recipe: str = "finetune",
) -> Run:
    """Run the recipe until it ends or is killed.

    Args:
        output_dir: the run's output folder; printed text is saved next to it.
        overrides: key=value.
        config: name or file.
        processes: ranks.
        kill_at: "step N" kills the run in step N before the optimizer; "SIGTERM 1 step N" sends it to rank 1
            there; "rename" kills it when a checkpoint is complete except for its final name.
        environment: additional variables; `torch.compile` is disabled unless TORCH_COMPILE_BACKEND is set.
        recipe: name of its module.
    """
    argv = ["--config", str(config), f"output_dir={output_dir}", "device=cpu", *overrides]
    output_dir.mkdir(parents=True, exist_ok=True)
    printed = [output_dir.parent / f"{output_dir.name}_rank_{rank}.txt" for rank in range(processes)]
    port = free_port()
    ranks = [
        FORKS.Process(
            target=_rank,
            args=(rank, processes, port, argv, str(printed[rank]), kill_at, dict(environment), recipe),
        )
        for rank in range(processes)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=HANGS_AFTER)
    hung = [process.kill() for process in ranks if process.is_alive()]
    assert not hung, f"{len(hung)} ranks hang; they printed: {''.join(path.read_text() for path in printed)}"
    text = "".join(path.read_text() for path in printed)
    return Run([process.exitcode for process in ranks], text, output_dir)


def free_port() -> int:
    """A free port for the ranks of a run."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def take_place(rank: int, size: int, port: int) -> None:
    """Set the environment variables that torchrun sets for a rank."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ.update({key: str(value) for key, value in place.items()}, MASTER_ADDR="127.0.0.1")


def command(printed: Path, argv: list[str]) -> tuple[int, str]:
    """Run `tune-qwenvl argv` in a new process; returns exit code and printed text."""
    process = FORKS.Process(target=_command, args=(str(printed), argv))
    process.start()
    process.join(timeout=HANGS_AFTER)
    assert process.exitcode is not None, f"tune-qwenvl {' '.join(argv)} hangs: {printed.read_text()}"
    return process.exitcode, printed.read_text()


def _command(printed: str, argv: list[str]) -> None:
    _become(printed)
    from torchtune_qwenvl.cli.main import main

    main(argv)


def _become(printed: str) -> None:
    """Make this fork behave like a process started from a shell, with its output in a file."""
    # The fork server is the default start method here; data workers are to be forked as usual.
    multiprocessing.set_start_method("fork", force=True)
    file = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(file, stream.fileno())
    import torch

    torch.set_num_threads(1)


def _rank(
    rank: int,
    size: int,
    port: int,
    argv: list[str],
    printed: str,
    kill_at: str,
    environment: dict[str, str],
    recipe: str,
) -> None:
    _become(printed)
    if size > 1:
        take_place(rank, size, port)
    os.environ.update(environment)
    import torch

    from torchtune_qwenvl.training import loop
    from torchtune_qwenvl.training.resume import folders

    # torchao's optimizer would compile a kernel per shape, which takes longer than all steps here.
    if "TORCH_COMPILE_BACKEND" not in environment:
        torch.compile = lambda function, **options: function
    if kill_at.startswith("step "):
        _signal_in_step(loop.TrainingLoop, int(kill_at.removeprefix("step ")), signal.SIGKILL)
    elif kill_at.startswith("SIG"):
        name, chosen, _, step = kill_at.split()
        if rank == int(chosen):
            _signal_in_step(loop.TrainingLoop, int(step), signal.Signals[name])
    elif kill_at == "rename":
        folders.os = _DyingOs(os)
    importlib.import_module(f"torchtune_qwenvl.recipes.{recipe}").main(argv)


def _signal_in_step(loop, step: int, number: int) -> None:
    train_step = loop.step

    def signalled(self, batches):
        if self.progress.step + 1 == step:
            os.kill(os.getpid(), number)
        return train_step(self, batches)

    loop.step = signalled


class _DyingOs:
    """The `os` module, except that `rename` kills the process."""

    def __init__(self, real) -> None:
        self._real = real

    def __getattr__(self, name: str):
        return getattr(self._real, name)

    def rename(self, *paths) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
