"""LoRA and DoRA that PEFT wrote, as adapters of ours.

Where files fuse projections that we split, one LoRA on the fused one becomes one on each part, which
computes the same: `lora_A` is copied, `lora_B` and DoRA's magnitudes are cut. Ranks and scales per module
become one setting: a smaller rank is filled up, with zeros in `lora_B`, which also takes the scale's ratio.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file
from torch import Tensor

from torchtune_qwenvl.checkpoints.adapters.peft_export import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PREFIX
from torchtune_qwenvl.entries import COUNT, FLAG, OBJECT, POSITIVE, TEXT, check_entries
from torchtune_qwenvl.json_files import read_json
from torchtune_qwenvl.models.weight_table import WeightTable, split_rows
from torchtune_qwenvl.modules.adapters.lora import ATTENTION_LINEARS, MLP_LINEARS
from torchtune_qwenvl.modules.experts.grouped import init_lora_a
from torchtune_qwenvl.modules.trainable import PARTS, part_of

_LORA = re.compile(
    r"(?P<module>.+)\.(?P<leaf>lora_A\.weight|lora_B\.weight|lora_magnitude_vector(\.weight)?)"
)
_KINDS = {
    "peft_type": TEXT,
    "base_model_name_or_path": TEXT,
    "r": COUNT,
    "lora_alpha": POSITIVE,
    "rank_pattern": OBJECT,
    "alpha_pattern": OBJECT,
    "use_dora": FLAG,
    "use_rslora": FLAG,
}
# Settings under which an adapter computes something else than LoRA on linears.
_PLAIN = {"peft_type": ("LORA",), "bias": ("none",), "lora_bias": (False,)}
_ABSENT = ("layer_replication", "trainable_token_indices", "target_parameters")
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")


class _Lora(NamedTuple):
    """One LoRA of the file: its tensors by leaf, and its factor alpha / rank."""

    tensors: dict[str, Tensor]
    scale: float


@dataclass(frozen=True)
class _Place:
    """Part `index` of the linears `parts` that PEFT's module `module` holds."""

    module: str
    index: int
    parts: tuple[str, ...]


class PeftAdapter:
    """An adapter folder in PEFT's form, whoever wrote it.

    Args:
        path: the folder.
        table: names of the family that the adapter belongs to.

    Raises:
        ValueError: a file is broken, or the adapter is none of ours: it names setting or module.
    """

    def __init__(self, path: str | Path, table: WeightTable) -> None:
        self.path, self.table = Path(path), table
        self.config = read_json(self.path / ADAPTER_CONFIG)
        check_entries(self.config, _KINDS, str(self.path / ADAPTER_CONFIG))
        self._check_settings()
        self.full: list[tuple[tuple[str, ...], Tensor]] = []
        self.lora: dict[str, _Lora] = {}
        for name, tensor in load_file(self.path / ADAPTER_WEIGHTS).items():
            self._sort(name.removeprefix(PREFIX).replace(".default.", "."), tensor)
        self.places = {
            ours: _Place(module, index, tuple(parts))
            for module in self.lora
            for parts in [self._parts(module)]
            for index, ours in enumerate(parts)
        }
        if not self.places:
            raise ValueError(f"{self.path / ADAPTER_WEIGHTS}: holds no LoRA; {_MERGE}")

    def builder_arguments(self) -> dict[str, Any]:
        """The `…_trainable` and `lora_…` arguments of a model with room for the adapter, without dropout."""
        full = {part_of(name) for names, _ in self.full for name in names}
        lora = {part_of(name) for name in self.places}
        if both := full & lora:
            raise ValueError(
                f"{self.path}: the {min(both)} has LoRA and modules_to_save, here a part has one of the two; "
                f"{_MERGE}"
            )
        modes = dict.fromkeys(PARTS, "frozen") | dict.fromkeys(full, "full") | dict.fromkeys(lora, "lora")
        leaves = {name.rpartition(".")[2] for name in self.places}
        rank = max(one.tensors["lora_A.weight"].shape[0] for one in self.lora.values())
        scale = Counter(one.scale for one in self.lora.values()).most_common(1)[0][0]
        experts = any(".experts." in row for row in self.table.rows)
        return {
            **{f"{part}_trainable": mode for part, mode in modes.items()},
            **({"experts_trainable": False} if experts else {}),
            "lora_attn_modules": [name for name in ATTENTION_LINEARS if name in leaves],
            "apply_lora_to_mlp": not leaves.isdisjoint(MLP_LINEARS),
            "lora_rank": rank,
            "lora_alpha": scale * rank,
            "use_dora": any("lora_magnitude_vector" in one.tensors for one in self.lora.values()),
        }

    def state(
        self, scaling: Mapping[str, float], rank: int, rows: Mapping[str, int]
    ) -> Iterator[tuple[str, Tensor]]:
        """(our name, tensor) of every adapter of a model, and of every fully trained weight.

        Args:
            scaling: `lora_scaling` of the model; its other modules get fresh adapters, which add nothing.
            rank: the model's.
            rows: length of the first axis of our parameters; parts of a fused tensor may differ in it.
        """
        if missing := [name for name in self.places if name not in scaling]:
            raise ValueError(f"{self.path}: the model has no adapter at {missing[0]}; {_MERGE}")
        for ours, factor in scaling.items():
            if ours in self.places:
                yield from self._adapter(ours, factor, rank, rows)
        for names, tensor in self.full:
            yield from zip(names, split_rows(tensor, names, rows), strict=True)

    def fresh(self, scaling: Mapping[str, float]) -> list[str]:
        """Modules with an adapter in the model, for which the folder has none."""
        return [name for name in scaling if name not in self.places]

    def _adapter(
        self, ours: str, factor: float, rank: int, rows: Mapping[str, int]
    ) -> Iterator[tuple[str, Tensor]]:
        place = self.places[ours]
        weights = [f"{name}.weight" for name in place.parts]
        lora = self.lora[place.module]
        a, b = lora.tensors["lora_A.weight"].float(), lora.tensors["lora_B.weight"].float()
        b = split_rows(b, weights, rows)[place.index] * (lora.scale / factor)
        if a.shape[0] < rank:
            wider_a, wider_b = a.new_empty(rank, a.shape[1]), b.new_zeros(b.shape[0], rank)
            init_lora_a(wider_a)
            wider_a[: a.shape[0]], wider_b[:, : b.shape[1]] = a, b
            a, b = wider_a, wider_b
        yield f"{ours}.lora_a.weight", a
        yield f"{ours}.lora_b.weight", b
        if (magnitude := lora.tensors.get("lora_magnitude_vector")) is not None:
            yield f"{ours}.magnitude", split_rows(magnitude.flatten(), weights, rows)[place.index]

    def _sort(self, name: str, tensor: Tensor) -> None:
        """Put a tensor of the file with its module's, or with the fully trained ones."""
        if match := _LORA.fullmatch(name):
            module = self.table.module_name(match["module"])
            lora = self.lora.setdefault(module, _Lora({}, self._scale(match["module"])))
            lora.tensors[
                match["leaf"].removesuffix(".weight") if "mag" in match["leaf"] else match["leaf"]
            ] = tensor
            return
        names = self.table.ours(name)
        if "lora_" in name or not names:
            raise ValueError(f"{self.path}: {name} is not read, LoRA is read on linears only; {_MERGE}")
        self.full.append((names, tensor))

    def _parts(self, module: str) -> list[str]:
        """Our linears in PEFT's module."""
        ours = [name.removesuffix(".weight") for name in self.table.ours(f"{module}.weight")]
        known = {*ATTENTION_LINEARS, *MLP_LINEARS}
        if not ours or any(name.rpartition(".")[2] not in known for name in ours):
            raise ValueError(
                f"{self.path}: LoRA on {module} is not read, only on linears of layers; {_MERGE}"
            )
        if not {"lora_A.weight", "lora_B.weight"} <= self.lora[module].tensors.keys():
            raise ValueError(f"{self.path / ADAPTER_WEIGHTS}: lora_A or lora_B of {module} is missing")
        return ours

    def _scale(self, module: str) -> float:
        """The factor of a module's output; patterns of the config are matched as PEFT matches them."""

        def of(pattern: str, default: str) -> float:
            found = (self.config.get(pattern) or {}).items()
            return next(
                (v for k, v in found if re.match(rf"(.*\.)?({k})$", module)), self.config.get(default) or 8
            )

        rank = of("rank_pattern", "r")
        return of("alpha_pattern", "lora_alpha") / (
            math.sqrt(rank) if self.config.get("use_rslora") else rank
        )

    def _check_settings(self) -> None:
        for name, values in _PLAIN.items():
            if (found := self.config.get(name)) is not None and found not in values:
                raise ValueError(f"{self.path / ADAPTER_CONFIG}: {name} = {found!r} is not read; {_MERGE}")
        for name in _ABSENT:
            if self.config.get(name):
                raise ValueError(f"{self.path / ADAPTER_CONFIG}: {name} is not read; {_MERGE}")
        begun = str(self.config.get("init_lora_weights")).lower()
        if begun.startswith(_CHANGES_BASE):
            raise ValueError(
                f"{self.path / ADAPTER_CONFIG}: init_lora_weights = {begun!r} changed the base model's "
                f"weights, which the folder does not hold; {_MERGE}"
            )


_MERGE = "merge it with PEFT (merge_and_unload, save_pretrained) and take the merged folder"
