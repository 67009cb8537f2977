"""torchtune's checkpointer interface over HF folders, for its stock recipes.

    output_dir/epoch_0/                 a HF checkpoint folder, adapters merged
    output_dir/epoch_0/adapter/         with LoRA: the same training as a PEFT adapter
    output_dir/recipe_state/            what the recipe needs to resume; written last, names the folder above

Resuming with LoRA starts from the unmerged base weights, the adapter and the fully trained parts.

On a CPU, torchtune 0.6.1's LoRA recipes merge adapters into the live model when they save between epochs,
because their copy "to the CPU" copies nothing. The next epoch then continues from doubled adapters; what was
written is right. This happens neither on a GPU nor in our own recipe.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchtune.training import ADAPTER_CONFIG, ADAPTER_KEY, MODEL_KEY, OPT_KEY

from torchtune_qwenvl.checkpoints.adapters.peft_export import save_adapter_folder
from torchtune_qwenvl.checkpoints.adapters.peft_import import AdapterFolder
from torchtune_qwenvl.checkpoints.folder import CheckpointFolder
from torchtune_qwenvl.checkpoints.weight_plan import plan_weights
from torchtune_qwenvl.checkpoints.writing import save_folder
from torchtune_qwenvl.models import get_family
from torchtune_qwenvl.modules.adapters.lora import is_adapter

RECIPE_STATE = "recipe_state/recipe_state.pt"
FOLDER_KEY = "checkpoint_folder"


class FolderCheckpointer:
    """Reads and writes HF checkpoint folders for torchtune's recipes.

    Args:
        checkpoint_dir: the folder to start from, with config.json and safetensors.
        output_dir: where `epoch_N` folders and the recipe state go.
        should_load_recipe_state: resume from `output_dir`; the recipes pass their `resume_from_checkpoint`.
        model_type: config.json's, or None. torchtune's recipes require the key with activation
            checkpointing.
        resize_embeddings: as the model's builder got it, see `build_model`.

    Raises:
        ValueError: the folder's model type is not known, or not `model_type`.
    """

    def __init__(
        self,
        checkpoint_dir: str,
        output_dir: str,
        should_load_recipe_state: bool = False,
        model_type: str | None = None,
        resize_embeddings: int | None = None,
    ) -> None:
        # torchtune's checkpoint client reads these two names.
        self._checkpoint_dir, self._output_dir = Path(checkpoint_dir), Path(output_dir)
        self._resume = should_load_recipe_state
        self._resize = resize_embeddings
        self._family = get_family(self._checkpoint_dir)
        if model_type not in (None, self._family.model_type):
            raise ValueError(
                f"{checkpoint_dir} holds a {self._family.model_type} model, expected {model_type}"
            )

    def load_checkpoint(self) -> dict[str, Any]:
        """{"model": weights by our names}, and when resuming "adapter" and the recipe's state.

        The weights are backed by the mapped files; a recipe copies them into its model.
        """
        if not self._resume:
            return {MODEL_KEY: self._read(self._checkpoint_dir)}
        path = self._output_dir / RECIPE_STATE
        if not path.is_file():
            raise ValueError(
                f"resume_from_checkpoint: {path} is missing, there is no finished epoch to resume from"
            )
        state = torch.load(path, map_location="cpu", weights_only=True)
        folder = self._output_dir / state.pop(FOLDER_KEY)
        if not (folder / "adapter").is_dir():
            return {MODEL_KEY: self._read(folder), **state}
        base = self._read(self._checkpoint_dir)
        rows = {name: len(tensor) for name, tensor in base.items()}
        trained = dict(AdapterFolder(folder / "adapter", self._family.weights).tensors(rows))
        adapter = {name: tensor for name, tensor in trained.items() if is_adapter(name)}
        base |= {n: trained[n].reshape(base[n].shape) for n in trained if n in base}
        return {MODEL_KEY: base, ADAPTER_KEY: adapter, **state}

    def save_checkpoint(
        self,
        state_dict: dict[str, Any],
        epoch: int,
        intermediate_checkpoint: bool = False,
        adapter_only: bool = False,
    ) -> None:
        """Write `epoch_{epoch}`; for an intermediate checkpoint, the recipe's state, too.

        Args:
            state_dict: "model" (adapters merged), "adapter" and "adapter_config" with LoRA, and the
                recipe's state.
            epoch: counted from 0.
            intermediate_checkpoint: more epochs follow. Weights then keep the dtype they are trained in,
                so that resuming loses nothing; otherwise they go back to that of `checkpoint_dir`.
            adapter_only: leave the merged weights out; only for models whose other parts are frozen.

        Raises:
            ValueError: not enough disk, or `adapter_only` would lose parts that train fully.
        """
        folder = self._output_dir / f"epoch_{epoch}"
        adapter = state_dict.get(ADAPTER_KEY) or {}
        if adapter_only:
            _check_nothing_else_trains(state_dict, adapter)
        else:
            weights = state_dict[MODEL_KEY]
            dtype = next(iter(weights.values())).dtype if intermediate_checkpoint else None
            save_folder(weights, folder, self._checkpoint_dir, dtype=dtype, rows=self._resize)
        if adapter:
            self._save_adapter(state_dict, adapter, folder / "adapter")
        if intermediate_checkpoint:
            rest = {
                key: value
                for key, value in state_dict.items()
                if key not in (MODEL_KEY, ADAPTER_KEY, ADAPTER_CONFIG)
            }
            _save_atomically({**rest, FOLDER_KEY: folder.name}, self._output_dir / RECIPE_STATE)

    def _save_adapter(self, state_dict: dict[str, Any], adapter: Mapping[str, Tensor], out: Path) -> None:
        """Write the adapter. A weight without adapter that differs from the base was trained fully."""
        config = state_dict[ADAPTER_CONFIG]
        modules = [n.removesuffix(".lora_a.weight") for n in adapter if n.endswith(".lora_a.weight")]
        base = self._read(self._checkpoint_dir)
        trained = {
            name: tensor
            for name, tensor in state_dict.get(MODEL_KEY, {}).items()
            if name.removesuffix(".weight") not in modules
            and not torch.equal(tensor.cpu(), base[name].to(tensor.dtype))
        }
        save_adapter_folder(
            {**base, **trained, **adapter},
            out,
            self._checkpoint_dir,
            scaling=dict.fromkeys(modules, config["lora_alpha"] / config["r"]),
            full=trained,
        )

    def _read(self, folder: Path) -> dict[str, Tensor]:
        with CheckpointFolder(folder) as files:
            with torch.device("meta"):
                model = self._family.from_config(files.config, resize_embeddings=self._resize)
            shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
            plan = plan_weights(files, self._family.weights, shapes)
            return {name: stored.read() for name, stored in plan.items()}


def _check_nothing_else_trains(state_dict: Mapping[str, Any], adapter: Mapping[str, Tensor]) -> None:
    """Count the parameters that train by the optimizer's state, which intermediate checkpoints have."""
    optimizer = state_dict.get(OPT_KEY) or {}
    if len(optimizer.get("state", ())) > len(adapter):
        raise ValueError(
            "save_adapter_weights_only: parts that train fully next to LoRA would be lost; set it to False"
        )


def _save_atomically(state: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
