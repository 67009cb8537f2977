"""What is done to each transformer layer of a tower: compiled, recomputed in the backward pass, moved off the
device meanwhile.

Each layer's own `forward` is wrapped, not the module, so that parameters keep their names, and FSDP's hooks,
which sit around `forward`, see one call. Inside out: compiled, then checkpointed.
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
    """Compile each layer, once for all lengths; before `checkpoint_activations`.

    Shapes are dynamic from the start: torchtune's `compile_model` would compile for the first batch's
    lengths, and again for the second's. Attention, over as many segments as a batch happens to have, stays
    outside. The backend is torch's, or that of TORCH_COMPILE_BACKEND, as in torchtune.
    """
    backend = os.environ.get("TORCH_COMPILE_BACKEND", "inductor")
    for _, layer in _layers(model):
        layer.forward = torch.compile(layer.forward, backend=backend, dynamic=True)  # type: ignore[method-assign]


def checkpoint_activations(model: nn.Module, towers: Mapping[str, bool]) -> None:
    """Recompute the layers of a tower ("encoder", "decoder") in the backward pass; before `shard`."""
    for name, layer in _layers(model):
        if towers.get(part_of(name), False):
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)  # type: ignore[method-assign]


def offload_activations(model: nn.Module, device: torch.device, enabled: bool) -> AbstractContextManager:
    """The context for forward and backward in which what the backward pass needs waits in the host's memory.

    torchtune's on CUDA, which copies beside the computation. On the CPU, where there is nowhere to go,
    torch's `save_on_cpu`: the same results, and no memory saved.
    """
    if enabled and device.type != "cuda":
        return save_on_cpu()
    return get_act_offloading_ctx_manager(model, enabled) if enabled else nullcontext()


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if isinstance(module, TransformerSelfAttentionLayer):
            yield name, module
