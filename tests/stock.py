"""Runs torchtune's stock recipes through its `tune` command, each in a process of its own.

A fork server imports torchtune once; the processes are forks of it.
"""

import multiprocessing
import re
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import yaml

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "torchtune_qwenvl.recipes.finetune",
        "torchtune_qwenvl.training.checkpointer",
        "torchtune.datasets.multimodal",
        "torchtune._cli.tune",
    ]
)


def start(settings: dict) -> BaseProcess:
    """`tune run` of the single-device recipe that fits the model's settings."""
    output = Path(settings["output_dir"])
    output.mkdir(parents=True, exist_ok=True)
    (output / "config.yaml").write_text(yaml.safe_dump(settings))
    method = "lora" if "lora_rank" in settings["model"] else "full"
    process = _context.Process(target=_tune, args=(f"{method}_finetune_single_device", str(output)))
    process.start()
    return process


def losses(process: BaseProcess, settings: dict) -> list[float]:
    """What a run has logged, once it has ended well."""
    process.join(timeout=300)
    assert process.exitcode == 0, (Path(settings["output_dir"]) / "printed.txt").read_text()[-4000:]
    (log,) = Path(settings["metric_logger"]["log_dir"]).glob("log_*.txt")
    return [float(value) for value in re.findall(r"^Step \d+ \| loss:(\S+)", log.read_text(), re.MULTILINE)]


def _tune(recipe: str, output: str) -> None:
    from torchtune._cli import tune

    sys.stdout = sys.stderr = open(f"{output}/printed.txt", "w", buffering=1)  # noqa: SIM115
    sys.argv = ["tune", "run", recipe, "--config", f"{output}/config.yaml"]
    torch.set_num_threads(1)
    tune.main()
