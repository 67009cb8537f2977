"""What a run or an answer begins from: a checkpoint folder, or an adapter with the checkpoint it belongs to.

start = find_start(folder, base_dir)
model = load_start(start, dtype, device)
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch

from torchtune_qwenvl.checkpoints.adapters.peft_export import ADAPTER_CONFIG
from torchtune_qwenvl.checkpoints.adapters.peft_import import adapter_arguments, load_adapter
from torchtune_qwenvl.checkpoints.folder import CheckpointFolder
from torchtune_qwenvl.checkpoints.loading import load_model, load_weights
from torchtune_qwenvl.entries import TEXT, check_entries
from torchtune_qwenvl.json_files import CONFIG, read_json
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel

_BASE = "base_model_name_or_path"


class Start(NamedTuple):
    """Where weights come from.

    Attributes:
        checkpoint: the checkpoint folder.
        adapter: the adapter folder on top of it; None: there is none.
    """

    checkpoint: Path
    adapter: Path | None = None

    def builder_arguments(self) -> dict[str, Any]:
        """What the adapter says about the model: its parts' modes, rank, alpha and targets."""
        return {} if self.adapter is None else adapter_arguments(self.adapter, self.checkpoint)


def find_start(folder: str | Path, base_dir: str | Path | None = None) -> Start:
    """A checkpoint folder as it is; for an adapter also the folder of its base model.

    Args:
        folder: a checkpoint or an adapter, ours or PEFT's.
        base_dir: the adapter's base model; None: as its adapter_config.json says.

    Raises:
        ValueError: the base model is not here, or `base_dir` is given for no adapter.
    """
    path = Path(folder)
    if not (path / ADAPTER_CONFIG).is_file() or (path / CONFIG).is_file():
        if base_dir is not None:
            raise ValueError(f"base_dir={base_dir} is for adapters, and {folder} has no {ADAPTER_CONFIG}")
        return Start(path)
    config = read_json(path / ADAPTER_CONFIG)
    check_entries(config, {_BASE: TEXT}, str(path / ADAPTER_CONFIG))
    named = base_dir or config.get(_BASE)
    if not named or not (Path(named) / CONFIG).is_file():
        raise ValueError(
            f"{folder} is an adapter of {named or 'a model that it does not name'}, which is no checkpoint "
            "folder here: give it as base_dir=DIR"
        )
    return Start(Path(named), path)


def load_into(
    model: VisionLanguageModel, files: CheckpointFolder, start: Start, device: torch.device
) -> None:
    """`load_weights` of the checkpoint, then the adapter's values if there is one.

    Args:
        model: on meta storage, built with `start.builder_arguments()`, whole or sharded.
        files: the open checkpoint.
        start: where from.
        device: where to.
    """
    load_weights(model, files, device)
    if start.adapter is not None:
        load_adapter(model, start.adapter)


def load_start(
    start: Start, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> VisionLanguageModel:
    """The model, with the adapter's values if there is one.

    Args:
        start: where from.
        dtype: as in `load_model`.
        device: as in `load_model`.
    """
    model = load_model(start.checkpoint, dtype, device, **start.builder_arguments())
    return model if start.adapter is None else load_adapter(model, start.adapter)
