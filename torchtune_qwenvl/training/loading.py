"""Weights into a model built on the meta device, whole or sharded: a rank reads only the rows it keeps.

    build on meta -> set_parameter_dtypes -> shard -> load_weights

What the model has in NF4 is quantised as it is read, one tensor at a time; there each rank reads all rows.

The first values of adapters are the same for every number of processes: each rank draws the whole matrix
from the same random numbers and keeps its rows.
"""

import math

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torchtune.modules.peft import DoRALinear, LoRALinear

from torchtune_qwenvl.models import get_family
from torchtune_qwenvl.modules.grouped import GroupedLoRALinear, init_lora_a
from torchtune_qwenvl.modules.nf4 import dequantised, is_nf4, quantised
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel
from torchtune_qwenvl.training.architecture import check_architecture
from torchtune_qwenvl.training.distributed import like, local
from torchtune_qwenvl.training.folder import CheckpointFolder
from torchtune_qwenvl.training.weight_plan import plan_weights


@torch.no_grad()
def load_weights(
    model: VisionLanguageModel, files: CheckpointFolder, device: torch.device, part: str = ""
) -> None:
    """Give a model on meta storage on `device` and the values of `files`; dtypes stay the model's.

    Args:
        model: whole, however little of it is loaded: the folder must fit all of it.
        files: the open folder.
        device: where to.
        part: path of the submodule to load; the rest stays on meta. Empty for everything.

    Raises:
        ValueError: the folder's config.json, names or shapes do not fit the model; names file and tensor.
    """
    check_architecture(model, files)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    plan = plan_weights(files, get_family(files.config).weights, shapes)
    loaded = model.get_submodule(part)
    loaded.to_empty(device=device)
    parameters = dict(model.named_parameters())
    for name, stored in plan.items():
        if not name.startswith(part):
            continue
        ours = local(parameters[name])
        if is_nf4(ours):
            _set_quantised(model, name, parameters[name], stored.read().to(device, ours.dtype))
            continue
        start = first_row(parameters[name])
        ours.copy_(stored.read(start, start + len(ours)))
    for module in loaded.modules():
        if callable(init := getattr(module, "rope_init", None)):
            init()
        if isinstance(module, (LoRALinear, DoRALinear, GroupedLoRALinear)):
            _init_adapter(module)


def first_row(tensor: Tensor) -> int:
    """Where this rank's rows of a sharded tensor begin: the first axis is cut as by `torch.chunk`."""
    if not isinstance(tensor, DTensor):
        return 0
    rows, mesh = tensor.shape[0], tensor.device_mesh
    return min(rows, mesh.get_local_rank() * math.ceil(rows / mesh.size()))


def _set_quantised(model: nn.Module, name: str, parameter: nn.Parameter, weight: Tensor) -> None:
    """Put `weight`, quantised, in the parameter's place. Quantised whole: its shards share one mean scale."""
    value = quantised(weight)
    if isinstance(parameter, DTensor):
        mesh = parameter.device_mesh
        value = like(value.chunk(mesh.size())[mesh.get_local_rank()], parameter)
    module, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(module), leaf, nn.Parameter(value, requires_grad=False))


def _init_adapter(module: LoRALinear | DoRALinear | GroupedLoRALinear) -> None:
    """As torchtune begins: A random, B zero, DoRA's magnitudes those of the weight's rows."""
    a = module.lora_a.weight
    drawn = torch.empty(a.shape)
    init_lora_a(drawn)
    start = first_row(a)
    local(a).copy_(drawn[start : start + len(local(a))])
    local(module.lora_b.weight).zero_()
    if isinstance(module, DoRALinear):
        # Both are cut along the same rows, so each rank has what it needs.
        local(module.magnitude).copy_(torch.linalg.norm(dequantised(local(module.weight)).float(), dim=1))
