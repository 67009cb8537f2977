"""Compile transformer layers, recompute them in the backward pass, or move what they keep to the host.

Wraps the `forward` of each layer, not the module. So parameters keep their names, and FSDP's hooks, which are
outside of `forward`, see one call. A layer is compiled first, then checkpointed.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint
from torchtune.modules import TransformerSelfAttentionLayer
from torchtune.training import get_act_offloading_ctx_manager

from torchtune_qwenvl.modules.trainable import part_of


def compile_layers(model: nn.Module) -> None:
    """Compile each layer, once for all lengths; call before `checkpoint_activations`.

    Shapes are dynamic from the start. torchtune's `compile_model` would compile for the lengths of the first
    batch and again for those of the second. Attention is not compiled, because the number of segments differs
    from batch to batch. The backend is torch's default or that of TORCH_COMPILE_BACKEND, as in torchtune.
    """
    backend = os.environ.get("TORCH_COMPILE_BACKEND", "inductor")
    for _, layer in _layers(model):
        layer.forward = torch.compile(layer.forward, backend=backend, dynamic=True)  # type: ignore[method-assign]


def checkpoint_activations(model: nn.Module, towers: Mapping[str, bool]) -> None:
    """Recompute the layers of towers ("encoder", "decoder") in the backward pass; call before `shard`."""
    for name, layer in _layers(model):
        if towers.get(part_of(name), False):
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)  # type: ignore[method-assign]


def offload_activations(model: nn.Module, device: torch.device, enabled: bool) -> AbstractContextManager:
    """A context for forward and backward that keeps saved activations in the host's memory.

    On CUDA it is torchtune's, which copies during the computation. On the CPU it is torch's `save_on_cpu`,
    which gives the same results but saves no memory.
    """
    if enabled and device.type != "cuda":
        return save_on_cpu()
    return get_act_offloading_ctx_manager(model, enabled) if enabled else nullcontext()


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if isinstance(module, TransformerSelfAttentionLayer):
            yield name, module
