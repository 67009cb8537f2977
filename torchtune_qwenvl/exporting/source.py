"""What `tune-qwenvl export` is given: a `step_N/` of a run, or an adapter."""

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from torchtune_qwenvl.checkpoints.adapters.peft_export import ADAPTER_CONFIG
from torchtune_qwenvl.exporting.trained import Trained, from_adapter, from_step
from torchtune_qwenvl.json_files import read_json
from torchtune_qwenvl.settings.config import require, resolve
from torchtune_qwenvl.training.resume import META


def find_trained(
    folder: Path, config: str, overrides: Sequence[str] = (), checkpoint_dir: Path | None = None
) -> Trained:
    """Read what a run has trained.

    Args:
        folder: `step_N/` of a run, or an adapter.
        config: name or file of the run's config; only read for a `step_N/`.
        overrides: keys of that config to change.
        checkpoint_dir: the checkpoint that training started from, if it has moved.

    Raises:
        ValueError: the folder is neither, or the config or the checkpoint is missing.
    """
    if (folder / META).is_file():
        return from_step(folder, config_of_run(config, overrides, checkpoint_dir))
    if not (folder / ADAPTER_CONFIG).is_file():
        raise ValueError(
            f"{folder}: expected a step_N folder of a run, with {META} in it, or an adapter, with "
            f"{ADAPTER_CONFIG}"
        )
    source = checkpoint_dir or Path(read_json(folder / ADAPTER_CONFIG)["base_model_name_or_path"])
    if not source.is_dir():
        raise ValueError(f"{folder} belongs to {source}, no folder here: give --checkpoint-dir DIR")
    return from_adapter(folder, source)


def config_of_run(config: str, overrides: Sequence[str], checkpoint_dir: Path | None) -> DictConfig:
    """The config of the run that wrote a `step_N/` folder."""
    if Path(config).is_absolute() and not Path(config).is_file():
        raise ValueError(
            f"no {config}: name the config that the run began with, --config NAME [key=value ...]"
        )
    moved = [f"checkpoint_dir={checkpoint_dir}"] if checkpoint_dir else []
    cfg = resolve(config, [*overrides, *moved])
    require(cfg, "checkpoint_dir", "model")
    return cfg
