"""Sharding by FSDP2 over the axes of the mesh."""

from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torchtune.modules import TransformerSelfAttentionLayer

from torchtune_qwenvl.distributed.mesh import sharding_mesh
from torchtune_qwenvl.distributed.world import World
from torchtune_qwenvl.modules.adapters.nf4 import BLOCK, is_nf4, takes_nf4
from torchtune_qwenvl.modules.trainable import NOT_BY_GRADIENTS


def shard(model: nn.Module, world: World, compute_dtype: torch.dtype, whole: nn.Module | None = None) -> None:
    """Split every parameter over the ranks (FSDP2); each transformer layer is gathered only while it runs.

    With several copies of the model (HSDP) each is split over its own ranks, which gather weights among
    themselves; only the sums of gradients go from copy to copy.

    The model computes in `compute_dtype`; gradients are summed in fp32. FSDP does not cast inputs: the model
    does that itself, after it has normalised pixels and computed rotary tables in fp32.

    Args:
        model: on meta storage.
        world: the ranks.
        compute_dtype: see above.
        whole: a frozen part of the model that is not split, so that a rank can run it without the others.
    """
    if world.size == 1:
        return
    policy = MixedPrecisionPolicy(
        param_dtype=compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    _check_quantised(model, world.shards)
    mesh = sharding_mesh(world.device.type, world.size, world.mesh)
    inside = set() if whole is None else set(whole.modules())
    ignored = kept_whole(model) | (set() if whole is None else set(whole.parameters()))
    options: dict[str, Any] = {"mesh": mesh, "mp_policy": policy, "ignored_params": ignored}
    for module in list(model.modules()):
        if isinstance(module, TransformerSelfAttentionLayer) and module not in inside:
            fully_shard(module, **options)
    # Everything else, including embeddings and merger, stays gathered between forward and backward.
    fully_shard(model, **options)


def kept_whole(model: nn.Module) -> set[nn.Parameter]:
    """Parameters that every rank keeps whole, in their own dtype: small ones that no gradient trains.

    FSDP casts every parameter that it shards to the compute dtype. A router's correction bias would lose the
    differences that it is there for: with 8 bits of mantissa, numbers around 8 are 1/32 apart.
    """
    named = model.named_parameters()
    return {parameter for name, parameter in named if name.rpartition(".")[2] in NOT_BY_GRADIENTS}


def reshard(model: nn.Module) -> None:
    """Drop the whole tensors that a forward pass without a backward pass leaves behind.

    Without it the parameters outside of the layers are whole tensors until the next backward pass: saving
    would write these instead of this rank's shards.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _check_quantised(model: nn.Module, size: int) -> None:
    """Check that each rank gets whole rows and whole blocks of every quantised weight."""
    for name, parameter in model.named_parameters():
        rows = parameter.shape[0] if parameter.dim() else 1
        if is_nf4(parameter) and (rows % size or not takes_nf4(parameter.numel() // size)):
            raise ValueError(
                f"quantize_base: {name} has {rows} x {parameter.shape[1]} values, which {size} processes "
                f"cannot share: each needs whole rows and a multiple of {BLOCK} values. Start a number of "
                "processes that divides it so (--nproc_per_node), another data_parallel_shard_degree, or set "
                "quantize_base=false."
            )
