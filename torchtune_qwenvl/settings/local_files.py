"""Files and folders that a config names and that are not on this machine."""

from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

# What is surely a file here, and no name of a dataset on the hub.
_FILES = (".json", ".jsonl", ".parquet")
_CHECKPOINT = ("config.json", "adapter_config.json")


def absent_files(cfg: DictConfig) -> list[str]:
    """One line for each folder of a model and each data file that a run would not find."""
    return [*_absent_checkpoint(cfg), *_absent_data(cfg)]


def _absent_checkpoint(cfg: DictConfig) -> Iterator[str]:
    folder = cfg.get("checkpoint_dir")
    if folder is not None and not any((Path(folder) / name).is_file() for name in _CHECKPOINT):
        yield f"checkpoint_dir: {folder}: no {' or '.join(_CHECKPOINT)}; `tune download REPO` gets a model"


def _absent_data(cfg: DictConfig) -> Iterator[str]:
    for key in ("dataset", "val_dataset"):
        source = (cfg.get(key) or {}).get("source")
        named = source if isinstance(source, str) and source.endswith(_FILES) else ""
        if named and "*" not in named and not Path(named).exists():
            yield f"{key}.source: {source}: no such file"
