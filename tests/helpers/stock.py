"""Run torchtune's stock recipes with its `tune` command, each in a new process.

A fork server imports torchtune once, and the processes are forked from it.
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
    """Start `tune run` with the single-device recipe, for LoRA or full training according to `settings`."""
    output = Path(settings["output_dir"])
    output.mkdir(parents=True, exist_ok=True)
    (output / "config.yaml").write_text(yaml.safe_dump(settings))
    method = "lora" if "lora_rank" in settings["model"] else "full"
    process = _context.Process(target=_tune, args=(f"{method}_finetune_single_device", str(output)))
    process.start()
    return process


def losses(process: BaseProcess, settings: dict) -> list[float]:
    """The losses of a run; waits for its successful end."""
    process.join(timeout=300)
    assert process.exitcode == 0, (Path(settings["output_dir"]) / "printed.txt").read_text()[-4000:]
    (log,) = Path(settings["metric_logger"]["log_dir"]).glob("log_*.txt")
    return [float(value) for value in re.findall(r"^Step \d+ \| loss:(\S+)", log.read_text(), re.MULTILINE)]


def config(root: Path, output: Path, model: dict, family: str = "qwen2_5_vl") -> dict:
    """The settings of both recipes."""
    return {
        "output_dir": str(output),
        "seed": 0,
        "device": "cpu",
        "dtype": "fp32",
        "shuffle": False,
        "compile": False,
        "epochs": 1,
        "max_steps_per_epoch": None,
        "batch_size": 8,
        "gradient_accumulation_steps": 1,
        "optimizer_in_bwd": False,
        "resume_from_checkpoint": False,
        "enable_activation_checkpointing": False,
        "enable_activation_offloading": False,
        "checkpointer": {
            "_component_": "torchtune_qwenvl.training.checkpointer.FolderCheckpointer",
            "checkpoint_dir": str(root / "checkpoint"),
            "output_dir": str(output),
            "model_type": family,
        },
        "model": {
            "_component_": f"torchtune_qwenvl.models.{family}.{family}_from_config",
            "config": str(root / "checkpoint"),
            **model,
        },
        "tokenizer": {"_component_": "torchtune_qwenvl.load_transform", "folder": str(root / "checkpoint")},
        "dataset": {"_component_": "torchtune.datasets.multimodal.multimodal_chat_dataset", **data(root)},
        "collate_fn": "torchtune_qwenvl.data.collate",
        "loss": {"_component_": "torchtune.modules.loss.CEWithChunkedOutputLoss"},
        "optimizer": {"_component_": "torch.optim.AdamW", "lr": 1e-2, "fused": True},
        "lr_scheduler": {
            "_component_": "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup",
            "num_warmup_steps": 0,
        },
        "metric_logger": {
            "_component_": "torchtune.training.metric_logging.DiskLogger",
            "log_dir": str(output / "logs"),
        },
    }


def data(root: Path) -> dict:
    return {
        "source": "json",
        "data_files": str(root / "data.json"),
        "image_dir": str(root),
        "image_tag": "<image>",
        "split": "train",
        "cache_dir": str(root / "cache"),
    }


def _tune(recipe: str, output: str) -> None:
    from torchtune._cli import tune

    sys.stdout = sys.stderr = open(f"{output}/printed.txt", "w", buffering=1)  # noqa: SIM115
    sys.argv = ["tune", "run", recipe, "--config", f"{output}/config.yaml"]
    torch.set_num_threads(1)
    tune.main()
