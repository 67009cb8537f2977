"""Adapters in PEFT's form: adapter_config.json and adapter_model.safetensors, for transformers' module tree.

Modules are addressed by their full names: a bare `q_proj` or `proj` would match modules of both towers. If
the files fuse projections that we split, LoRA on our parts is one block-diagonal LoRA on the fused one. With
q and v adapted, rank r each, and s rows per projection (the projections may differ in it):

    lora_A  [2r, d] = | A_q |        lora_B  [3s, 2r] = | B_q   0  |        rank 2r, alpha 2 * alpha: the same
                      | A_v |                           |  0    0  |        factor alpha / rank
                                                        |  0   B_v |

DoRA's magnitudes are per row, so they are joined; a part without adapter keeps the norms of its own rows.
LoRA of rank r on E experts is PEFT's LoRA on a parameter (`target_parameters`): A [E, r, in] as [E * r, in],
and B [E, out, r] as [out, r * E], whose last axis runs through the experts first. If a module has several
adapted parameters, PEFT nests one wrapper in the next, in the order of the module's parameters, which is that
of the table's rows. So the first one's tensors are under `base_layer`.

Parts that train fully next to LoRA are written whole, as `modules_to_save`.

PEFT 0.21 refuses to load any LoRA if it finds torchao < 0.16, which torchtune 0.6.1 needs: load adapters
in an environment without torchao.
"""

import json
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from torchtune_qwenvl.checkpoints.folder import (
    CheckpointFolder,
    check_disk_space,
)
from torchtune_qwenvl.checkpoints.merged_weights import lora_scaling
from torchtune_qwenvl.checkpoints.writing import check_out_folder
from torchtune_qwenvl.durable import replaced_folder
from torchtune_qwenvl.json_files import write_json
from torchtune_qwenvl.models import get_family
from torchtune_qwenvl.models.weight_table import WeightTable, lies_transposed
from torchtune_qwenvl.modules.adapters.lora import is_adapter

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
METADATA = "torchtune_qwenvl.lora_modules"


def save_adapter(model: nn.Module, out_folder: str | Path, source: str | Path) -> Path:
    """Write the adapters of `model`, and its fully trained parts, as a PEFT adapter folder; returns it.

    Args:
        model: a whole model with at least one "lora" part.
        out_folder: the folder to write; it appears complete or not at all.
        source: the checkpoint folder that the model was loaded from; the adapter's base model.

    Raises:
        ValueError: the model has no adapter, or not enough disk.
    """
    parameters = dict(model.named_parameters())
    full = {name for name, p in parameters.items() if p.requires_grad and not is_adapter(name)}
    state = {name: parameter.detach() for name, parameter in parameters.items()}
    return save_adapter_folder(state, out_folder, source, scaling=lora_scaling(model), full=full)


def save_adapter_folder(
    state: Mapping[str, Tensor],
    out_folder: str | Path,
    source: str | Path,
    *,
    scaling: Mapping[str, float],
    full: Collection[str] = (),
) -> Path:
    """`save_adapter` for parameters by name, read one at a time.

    Args:
        state: our parameters. Base weights are read only for the names in `full` and for parts of fused
            tensors that have no adapter.
        out_folder: as in `save_adapter`.
        source: as in `save_adapter`.
        scaling: `lora_scaling(model)`.
        full: parameters that were trained fully.
    """
    if not scaling:
        raise ValueError('no part of the model is set to "lora": there is no adapter; use save_model')
    out = Path(out_folder).absolute()
    check_out_folder(out, Path(source), proof=ADAPTER_CONFIG)
    table = get_family(source).weights
    groups = _groups(scaling, table)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for target, parts in groups.items():
        adapter, ranks[target] = _adapter_of(state, target, parts, table)
        for leaf, tensor in adapter.items():
            tensors[f"{PREFIX}{place(target, table)}.{leaf}"] = tensor
    saved = _full_tensors(state, full, table, _shapes(source, table))
    tensors |= {PREFIX + name: tensor for name, tensor in saved.items()}
    alphas = {target: scaling[next(iter(parts.values()))] * ranks[target] for target, parts in groups.items()}
    config = _adapter_config(ranks, alphas, table, source)
    config["use_dora"] = any(name.endswith("lora_magnitude_vector") for name in tensors)
    # transformers has no modules for what it does not load.
    known = [name for name in saved if not table.carries(name)]
    config["modules_to_save"] = _outermost({name.rpartition(".")[0] for name in known}) or None
    check_disk_space(out, sum(tensor.nbytes for tensor in tensors.values()))
    with replaced_folder(out) as work:
        write_json(work / ADAPTER_CONFIG, config)
        modules = {place(target, table): list(parts.values()) for target, parts in groups.items()}
        save_file(tensors, work / ADAPTER_WEIGHTS, {"format": "pt", METADATA: json.dumps(modules)})
    return out


def is_parameter(target: str, table: WeightTable) -> bool:
    """Whether transformers has experts' matrices under this name, and not a module."""
    return not table.ours(f"{target}.weight")


def peft_name(target: str, table: WeightTable) -> str:
    """What an adapter's config calls a target, and looks its rank up by."""
    as_parameter = target.rpartition(".")[2] in table.peft_parameters and not is_parameter(target, table)
    return f"{target}.weight" if as_parameter else target


def place(target: str, table: WeightTable) -> str:
    """PEFT's module for an adapted module or parameter of transformers."""
    if not is_parameter(target, table):
        return target
    owner, _, name = target.rpartition(".")
    siblings = list(dict.fromkeys(row.rpartition(".")[2] for row in table.rows if ".experts." in row))
    return owner + ".base_layer" * (len(siblings) - 1 - siblings.index(name))


def _groups(scaling: Mapping[str, float], table: WeightTable) -> dict[str, dict[int, str]]:
    """transformers' module or parameter -> {place in it: our module with an adapter}, in order."""
    groups: dict[str, dict[int, str]] = {}
    for ours in scaling:
        piece = table.theirs(f"{ours}.weight")
        groups.setdefault(piece.name.removesuffix(".weight"), {})[piece.index] = ours
    for module, parts in groups.items():
        if len({scaling[ours] for ours in parts.values()}) > 1:
            raise ValueError(
                f"{module}: its parts have different alpha / rank, PEFT knows one: use save_model"
            )
    return {module: dict(sorted(parts.items())) for module, parts in sorted(groups.items())}


def _adapter_of(
    state: Mapping[str, Tensor], target: str, parts: Mapping[int, str], table: WeightTable
) -> tuple[dict[str, Tensor], int]:
    """PEFT's tensors of one module or parameter of transformers from our adapters in it, and their rank."""
    a = [_value(state, f"{ours}.lora_a.weight") for ours in parts.values()]
    b = [_value(state, f"{ours}.lora_b.weight") for ours in parts.values()]
    if is_parameter(target, table):
        joined = b[0].permute(1, 2, 0).flatten(1).contiguous()
        return {"lora_A.weight": a[0].flatten(0, 1), "lora_B.weight": joined}, a[0].shape[1]
    whole = [name.removesuffix(".weight") for name in table.ours(f"{target}.weight")]
    adapted = dict(zip(parts, b, strict=True))
    blocks = [
        adapted[i] if i in adapted else b[0].new_zeros(_rows(state, ours), 0) for i, ours in enumerate(whole)
    ]
    joined, rank = torch.block_diag(*blocks), sum(block.shape[1] for block in b)
    tensors = {"lora_A.weight": torch.cat(a), "lora_B.weight": joined}
    if f"{next(iter(parts.values()))}.magnitude" in set(state):
        norms = [_magnitude(state, ours, adapted=ours in parts.values()) for ours in whole]
        tensors["lora_magnitude_vector"] = torch.cat(norms)
    return tensors, rank


def _rows(state: Mapping[str, Tensor], ours: str) -> int:
    return state[f"{ours}.weight"].shape[0]


def _magnitude(state: Mapping[str, Tensor], ours: str, adapted: bool) -> Tensor:
    if adapted:
        return _value(state, f"{ours}.magnitude")
    return torch.linalg.norm(_value(state, f"{ours}.weight").float(), dim=1)


def _shapes(source: str | Path, table: WeightTable) -> dict[str, tuple[int, ...]]:
    """Shape of each of the base model's tensors under its name in transformers' module tree."""
    with CheckpointFolder(source) as files:
        return {table.module_name(name): entry.shape for name, entry in files.entries()}


def _full_tensors(
    state: Mapping[str, Tensor],
    full: Collection[str],
    table: WeightTable,
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, Tensor]:
    """transformers' tensors of every module that holds one of the parameters `full`; a tied head among
    them."""
    names, found = set(state), {}
    wanted = [table.theirs(name).name.rpartition(".") for name in full]
    wanted += [
        table.theirs(head).name.rpartition(".")
        for head, embedding in table.tied.items()
        if embedding in full and head not in names
    ]
    leaves = sorted({"weight", "bias"} | {row.rpartition(".")[2] for row in table.rows})
    for module in sorted({module for module, *_ in wanted}):
        for leaf in leaves:
            ours = [table.tied.get(n, n) if n not in names else n for n in table.ours(f"{module}.{leaf}")]
            if ours and names.issuperset(ours):
                whole = torch.cat([_value(state, name) for name in ours])
                shape = shapes.get(f"{module}.{leaf}", tuple(whole.shape))
                turned = lies_transposed(shape, tuple(whole.shape))  # in files only, not in PEFT's modules
                # Only kernels are reshaped: embeddings may have more rows than in the files.
                found[f"{module}.{leaf}"] = whole if turned or len(shape) <= 2 else whole.reshape(shape)
    return found


def _adapter_config(
    ranks: Mapping[str, int], alphas: Mapping[str, float], table: WeightTable, source: str | Path
) -> dict[str, Any]:
    rank, alpha = _commonest(ranks.values()), _commonest(alphas.values())
    names = {target: peft_name(target, table) for target in ranks}
    parameters = [name for target, name in names.items() if name != target or is_parameter(target, table)]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(source),
        "inference_mode": True,
        "bias": "none",
        "lora_dropout": 0.0,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {names[target]: r for target, r in ranks.items() if r != rank},
        "alpha_pattern": {names[target]: a for target, a in alphas.items() if a != alpha},
        "target_modules": [name for name in names.values() if name not in parameters],
        "target_parameters": parameters or None,
    }


def _outermost(modules: Collection[str]) -> list[str]:
    """Those that are not inside another: PEFT saves a module with everything in it."""
    names = set(modules)

    def inside(name: str) -> bool:
        return any(name[:i] in names for i, letter in enumerate(name) if letter == ".")

    return sorted(name for name in names if not inside(name))


def _commonest(values: Collection[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]


def _value(state: Mapping[str, Tensor], name: str) -> Tensor:
    return state[name].detach().cpu().contiguous()
