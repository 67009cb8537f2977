"""Loading adapter folders, ours and PEFT's, into a model: to resume, to generate, to train further."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torchtune.utils import get_logger, log_rank_zero

from torchtune_qwenvl.checkpoints.adapters.peft_export import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    METADATA,
    PREFIX,
    is_parameter,
    peft_name,
)
from torchtune_qwenvl.checkpoints.adapters.peft_reading import PeftAdapter
from torchtune_qwenvl.checkpoints.embedding_rows import PER_TOKEN
from torchtune_qwenvl.checkpoints.merged_weights import lora_scaling
from torchtune_qwenvl.checkpoints.shards import read_shard
from torchtune_qwenvl.distributed import local, rows_of
from torchtune_qwenvl.json_files import read_json
from torchtune_qwenvl.models import get_family
from torchtune_qwenvl.models.weight_table import WeightTable, fits, split_rows
from torchtune_qwenvl.modules.adapters.lora import ATTENTION_LINEARS, MLP_LINEARS
from torchtune_qwenvl.modules.trainable import PARTS, part_of
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel

LEAVES = {
    "lora_A.weight": "lora_a.weight",
    "lora_B.weight": "lora_b.weight",
    "lora_magnitude_vector": "magnitude",
}


class AdapterFolder:
    """An adapter folder that `save_adapter` wrote.

    Args:
        path: the folder.
        table: names of the family that the adapter belongs to.

    Raises:
        ValueError: it is no adapter folder, or other software wrote it. PEFT's form does not say which parts
            of a fused projection are adapted; ours notes it in the file's metadata.
    """

    def __init__(self, path: str | Path, table: WeightTable) -> None:
        self.path, self.table = Path(path), table
        for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            if not (self.path / name).is_file():
                raise ValueError(f"{path}: not an adapter folder, {name} is missing")
        self.config = read_json(self.path / ADAPTER_CONFIG)
        with safe_open(str(self.path / ADAPTER_WEIGHTS), framework="pt") as file:
            metadata = file.metadata() or {}
        stored = load_file(self.path / ADAPTER_WEIGHTS)
        self.stored = {name.removeprefix(PREFIX): tensor for name, tensor in stored.items()}
        if METADATA not in metadata:
            raise ValueError(f"{self.path / ADAPTER_WEIGHTS}: not written by torchtune_qwenvl")
        self.lora_modules: dict[str, list[str]] = json.loads(metadata[METADATA])

    def tensors(self, rows: Mapping[str, int]) -> Iterator[tuple[str, Tensor]]:
        """(our name, tensor) of every adapter weight and every fully trained weight.

        Args:
            rows: length of the first axis of our parameters; parts of a fused tensor may differ in it.
        """
        for name, tensor in self.stored.items():
            module, leaf = self._split(name)
            if leaf in LEAVES:
                for index, ours in enumerate(self.lora_modules[module]):
                    yield f"{ours}.{LEAVES[leaf]}", self._part(module, leaf, tensor, index, rows)
            else:
                names = self.table.ours(name)
                yield from zip(names, split_rows(tensor, names, rows), strict=True)

    def builder_arguments(self) -> dict[str, Any]:
        """The `…_trainable` and `lora_…` arguments of the model that wrote the folder, without dropout."""
        lora = [ours for group in self.lora_modules.values() for ours in group]
        full = [
            n for name in self.stored if self._split(name)[1] not in LEAVES for n in self.table.ours(name)
        ]
        predicts = any(map(self.table.carries, full))
        full = [name for name in full if not self.table.carries(name)]
        modes = dict.fromkeys(PARTS, "frozen")
        others = [name for name in full if not _of_experts(name) and name not in PER_TOKEN]
        modes |= {part_of(name): "full" for name in others} | {part_of(name): "lora" for name in lora}
        leaves = {name.rpartition(".")[2] for name in lora}
        group = next(iter(self.lora_modules.values()))
        target = self._target(group[0])
        total_rank = self._rank(target)
        total_alpha = self.config["alpha_pattern"].get(
            peft_name(target, self.table), self.config["lora_alpha"]
        )
        experts = "lora" if any(map(_of_experts, lora)) else any(map(_of_experts, full))
        return {
            **{f"{part}_trainable": mode for part, mode in modes.items()},
            **self._embedding_arguments(modes["decoder"] == "full"),
            **({"experts_trainable": experts} if any(map(_of_experts, self.table.rows)) else {}),
            **({"mtp_trainable": True} if predicts else {}),
            "lora_attn_modules": [name for name in ATTENTION_LINEARS if name in leaves],
            "apply_lora_to_mlp": not leaves.isdisjoint(MLP_LINEARS),
            "lora_rank": total_rank // len(group),
            "lora_alpha": total_alpha / len(group),
            "use_dora": bool(self.config.get("use_dora")),
        }

    def _embedding_arguments(self, decoder_is_full: bool) -> dict[str, Any]:
        """What is said of embeddings that train next to LoRA, with as many rows as they were saved with."""
        rows = [len(t) for name, t in self.stored.items() if set(self.table.ours(name)) & set(PER_TOKEN)]
        if not rows:
            return {}
        return {"resize_embeddings": rows[0], **({} if decoder_is_full else {"embeddings_trainable": True})}

    def _split(self, name: str) -> tuple[str, str]:
        for leaf in LEAVES:
            if name.endswith(f".{leaf}"):
                return name.removesuffix(f".{leaf}"), leaf
        module, _, leaf = name.rpartition(".")
        return module, leaf

    def _target(self, ours: str) -> str:
        """The module or parameter of transformers that PEFT adapts for our module."""
        return self.table.theirs(f"{ours}.weight").name.removesuffix(".weight")

    def _rank(self, target: str) -> int:
        return self.config["rank_pattern"].get(peft_name(target, self.table), self.config["r"])

    def _part(self, module: str, leaf: str, tensor: Tensor, index: int, rows: Mapping[str, int]) -> Tensor:
        """The block of one of our modules: number `index` among those adapted in PEFT's `module`."""
        adapted = self.lora_modules[module]
        target = self._target(adapted[index])
        if is_parameter(target, self.table):
            rank = self._rank(target)
            if leaf == "lora_A.weight":
                return tensor.unflatten(0, (-1, rank))
            return tensor.unflatten(1, (rank, -1)).permute(2, 0, 1)
        whole = [name.removesuffix(".weight") for name in self.table.ours(f"{target}.weight")]
        if leaf == "lora_A.weight":
            return tensor.chunk(len(adapted))[index]
        parts = split_rows(tensor, [f"{name}.weight" for name in whole], rows)
        part = parts[whole.index(adapted[index])]
        return part.chunk(len(adapted), dim=1)[index] if leaf == "lora_B.weight" else part


def open_adapter(folder: str | Path, table: WeightTable) -> AdapterFolder | PeftAdapter:
    """An adapter folder of ours, or one that PEFT wrote.

    Raises:
        ValueError: it is no adapter folder, or one that is not read.
    """
    path = Path(folder)
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (path / name).is_file():
            raise ValueError(f"{folder}: not an adapter folder, {name} is missing")
    read_shard(path / ADAPTER_WEIGHTS)  # whose errors name the tensor
    with safe_open(str(path / ADAPTER_WEIGHTS), framework="pt") as file:
        ours = METADATA in (file.metadata() or {})
    return AdapterFolder(path, table) if ours else PeftAdapter(path, table)


def adapter_state(folder: str | Path, model: VisionLanguageModel) -> dict[str, Tensor]:
    """The folder's tensors by the names of a model built with its `adapter_arguments`, in its shapes.

    Args:
        folder: an adapter folder.
        model: on any device; it is not changed.

    Raises:
        ValueError: the model has other adapters or fully trained parts than the folder.
    """
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    adapter = open_adapter(folder, get_family(model.config).weights)
    scaling, rows = lora_scaling(model), {name: shape[0] for name, shape in shapes.items()}
    if isinstance(adapter, PeftAdapter):
        ranks = [shapes[f"{name}.lora_a.weight"][0] for name in scaling]
        found = adapter.state(scaling, ranks[0] if ranks else 0, rows)
    else:
        found = adapter.tensors(rows)
    state = {}
    for name, tensor in found:
        name = adapter.table.tied.get(name, name) if name not in shapes else name
        if name not in shapes or not fits(tuple(tensor.shape), [shapes[name]]):
            raise ValueError(f"{folder}: {name} {list(tensor.shape)} does not fit the model; {_ADVICE}")
        state[name] = tensor.reshape(shapes[name])
    if isinstance(adapter, PeftAdapter):
        _check_trained(adapter, model, state)
    elif missing := [name for name, p in model.named_parameters() if p.requires_grad and name not in state]:
        raise ValueError(f"{folder}: holds nothing for {missing[0]}, which the model trains; {_ADVICE}")
    return state


def _check_trained(adapter: PeftAdapter, model: VisionLanguageModel, state: Mapping[str, Tensor]) -> None:
    """Say which linears get fresh adapters next to those of the folder; refuse what would be lost."""
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    if lost := [name for name in state if name not in trains]:
        raise ValueError(f"{adapter.path}: {lost[0]} was trained, the model keeps it frozen; {_ADVICE}")
    if fresh := adapter.fresh(lora_scaling(model)):
        log_rank_zero(
            get_logger("INFO"),
            f"{adapter.path} adapts {len(adapter.places)} linears. {len(fresh)} more of the same kind have "
            f"an adapter here, {fresh[0]} first: they begin at zero",
        )


@torch.no_grad()
def load_adapter(model: VisionLanguageModel, folder: str | Path) -> VisionLanguageModel:
    """Copy an adapter folder into a model built with its `adapter_arguments`; returns the model.

    Args:
        model: whole or sharded.
        folder: ours or PEFT's.

    Raises:
        ValueError: as `adapter_state`.
    """
    parameters = dict(model.named_parameters())
    for name, tensor in adapter_state(folder, model).items():
        local(parameters[name]).copy_(tensor[rows_of(parameters[name])])
    return model


def adapter_arguments(folder: str | Path, source: str | Path) -> dict[str, Any]:
    """Builder arguments of a model with the folder's adapters: `load_model(source,
    **adapter_arguments(...))`."""
    return open_adapter(folder, get_family(source).weights).builder_arguments()


def _of_experts(name: str) -> bool:
    return ".experts." in name


_ADVICE = "build the model with load_model(source, **adapter_arguments(folder, source))"
