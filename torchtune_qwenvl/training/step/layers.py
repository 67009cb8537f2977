"""Compile transformer layers, or move what they keep for the backward pass to the host.

Compiling wraps the `forward` of each layer, not the module. So parameters keep their names, and FSDP's hooks,
which are outside of `forward`, see one call.
"""

import os
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn
from torch.autograd.graph import save_on_cpu
from torchtune.modules import TransformerSelfAttentionLayer
from torchtune.training import get_act_offloading_ctx_manager

from torchtune_qwenvl.modules.adapters.nf4 import is_nf4
from torchtune_qwenvl.modules.vision.layers import GatedPatchMerger, PatchMerger


def should_compile(asked: bool | None, device: torch.device, model: nn.Module) -> bool:
    """Whether layers are compiled: as asked, or if nothing is asked, on CUDA without quantised weights."""
    if asked is not None:
        return asked
    return device.type == "cuda" and not any(is_nf4(parameter) for parameter in model.parameters())


def compile_layers(model: nn.Module) -> None:
    """Compile each layer and merger, once for all lengths; call before `checkpoint_activations`.

    Shapes are dynamic from the start. torchtune's `compile_model` would compile for the lengths of the first
    batch and again for those of the second. On CUDA in bf16 a dense layer is one graph, with attention in it.
    Elsewhere attention is not compiled, because the number of its kernels differs from batch to batch.
    Experts never are. The backend is torch's default or that of TORCH_COMPILE_BACKEND, as in torchtune.
    """
    backend = os.environ.get("TORCH_COMPILE_BACKEND", "inductor")
    for module in model.modules():
        if not isinstance(module, (TransformerSelfAttentionLayer, PatchMerger, GatedPatchMerger)):
            continue
        compiled = torch.compile(module.forward, backend=backend, dynamic=True)
        module.forward = compiled  # type: ignore[method-assign]


def offload_activations(model: nn.Module, device: torch.device, enabled: bool) -> AbstractContextManager:
    """A context for forward and backward that keeps saved activations in the host's memory.

    On CUDA it is torchtune's, which copies during the computation. On the CPU it is torch's `save_on_cpu`,
    which gives the same results but saves no memory.
    """
    if enabled and device.type != "cuda":
        return save_on_cpu()
    return get_act_offloading_ctx_manager(model, enabled) if enabled else nullcontext()
