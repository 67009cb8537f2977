"""HF checkpoint folder -> our model, whole or sharded.

    load_model(folder)             builds on the meta device, then fills one tensor after the other
    load_weights(model, files)     fills a model that is built, and perhaps sharded, on the meta device

A rank reads only the rows it keeps. Weights that the model keeps in NF4 are quantised as they are read, one
tensor at a time; for these, each rank reads all rows.

The initial values of adapters do not depend on the number of processes: each rank draws the whole matrix from
the same random numbers and keeps its rows.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torchtune.modules.peft import DoRALinear, LoRALinear
from torchtune.utils import get_logger, log_rank_zero

from torchtune_qwenvl.checkpoints.architecture import check_architecture
from torchtune_qwenvl.checkpoints.embedding_rows import check_token_ids
from torchtune_qwenvl.checkpoints.folder import CheckpointFolder
from torchtune_qwenvl.checkpoints.weight_plan import Stored, plan_weights
from torchtune_qwenvl.distributed import like, local
from torchtune_qwenvl.json_files import CONFIG, naming
from torchtune_qwenvl.models import get_family
from torchtune_qwenvl.modules.adapters.nf4 import dequantised, is_nf4, quantised, set_dtype
from torchtune_qwenvl.modules.experts.grouped import GroupedLoRALinear, init_lora_a
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel


def load_model(
    folder: str | Path,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    **builder_arguments: Any,
) -> VisionLanguageModel:
    """Build the model that a HF checkpoint folder holds, and load its weights.

    The weights are in memory only once: the model is built without storage, then filled from mapped files.

    Args:
        folder: HF checkpoint folder with config.json and safetensors, published or transformers 5 layout.
        dtype: dtype of all parameters; None: each parameter's in the files (adapters take the first one's).
        device: device of the parameters.
        **builder_arguments: arguments of the family's builder: `encoder_trainable`, `lora_rank`, …

    Raises:
        ValueError: it is no checkpoint folder, a file is missing, broken or cut off, files contradict each
            other, the model type is not known, names or shapes do not fit, or the tokenizer has ids beyond
            the embeddings. File and tensor are named.
    """
    with CheckpointFolder(folder) as files:
        model = _build(files, dtype, builder_arguments)
        load_weights(model, files, torch.device(device))
    return model


@torch.no_grad()
def load_weights(model: VisionLanguageModel, files: CheckpointFolder, device: torch.device) -> None:
    """Give a model on meta storage on `device` and the values of `files`; dtypes stay the model's.

    Args:
        model: the folder must fit all of it.
        files: the open folder.
        device: where to.

    Raises:
        ValueError: the folder's config.json, names or shapes do not fit the model, or its tokenizer has ids
            beyond the embeddings; names file and tensor.
    """
    check_architecture(model, files)
    if files.own_head:
        log_rank_zero(
            get_logger("INFO"),
            f"{files.path}: config.json says tie_word_embeddings, but the files hold a head that differs "
            "from the embeddings. It stays a weight of its own, as in transformers; saved folders say so",
        )
    check_token_ids(files.path, model.config["text_config"]["vocab_size"])
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    fill(model, plan_weights(files, get_family(files.config).weights, shapes), device)


@torch.no_grad()
def fill(model: nn.Module, plan: Mapping[str, Stored], device: torch.device) -> None:
    """Give a module on meta storage on `device` and the planned values; adapters start as torchtune's do.

    Args:
        model: whole or sharded.
        plan: parameter -> where it lies.
        device: where to.
    """
    model.to_empty(device=device)
    parameters = dict(model.named_parameters())
    for name, stored in plan.items():
        ours = local(parameters[name])
        if is_nf4(ours):
            _set_quantised(model, name, parameters[name], stored.read().to(device, ours.dtype))
            continue
        start = first_row(parameters[name])
        ours.copy_(stored.read(start, start + len(ours)).to(device))  # sent as it is, cast there
    for module in model.modules():
        if isinstance(module, (LoRALinear, DoRALinear, GroupedLoRALinear)):
            _init_adapter(module)


def first_row(tensor: Tensor) -> int:
    """The first of this rank's rows of a sharded tensor, whose first axis is cut as by `torch.chunk`."""
    if not isinstance(tensor, DTensor):
        return 0
    rows, mesh = tensor.shape[0], tensor.device_mesh
    return min(rows, mesh.get_local_rank() * math.ceil(rows / mesh.size()))


def _set_quantised(model: nn.Module, name: str, parameter: nn.Parameter, weight: Tensor) -> None:
    """Replace a parameter by `weight`, quantised before it is cut: the shards share one mean scale."""
    value = quantised(weight)
    if isinstance(parameter, DTensor):
        mesh = parameter.device_mesh
        value = like(value.chunk(mesh.size())[mesh.get_local_rank()], parameter)
    module, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(module), leaf, nn.Parameter(value, requires_grad=False))


def _init_adapter(module: LoRALinear | DoRALinear | GroupedLoRALinear) -> None:
    """Initialise as torchtune does: A random, B zero, DoRA's magnitudes the norms of the weight's rows."""
    a = module.lora_a.weight
    drawn = torch.empty(a.shape)
    init_lora_a(drawn)
    start = first_row(a)
    local(a).copy_(drawn[start : start + len(local(a))])
    local(module.lora_b.weight).zero_()
    if isinstance(module, DoRALinear):
        # Both are cut along the same rows, so each rank has what it needs.
        local(module.magnitude).copy_(torch.linalg.norm(dequantised(local(module.weight)).float(), dim=1))


def _build(
    files: CheckpointFolder, dtype: torch.dtype | None, builder_arguments: dict[str, Any]
) -> VisionLanguageModel:
    """Build the folder's model on the meta device, in the files' dtypes or in `dtype`."""
    family = get_family(files.config)
    with torch.device("meta"), naming(files.path, CONFIG, "image_mean"):
        model = family.from_config(files.config, **{**files.image_statistics(), **builder_arguments})
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    set_stored_dtypes(model, plan_weights(files, family.weights, shapes), dtype)
    return model


def set_stored_dtypes(model: nn.Module, plan: Mapping[str, Stored], dtype: torch.dtype | None) -> None:
    """Give every parameter `dtype`, or the one it has in the files; adapters take that of the first."""
    first = next(iter(plan.values())).dtype
    for name, parameter in model.named_parameters():
        set_dtype(parameter, dtype or (plan[name].dtype if name in plan else first))
