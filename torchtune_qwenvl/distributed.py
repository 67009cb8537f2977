"""One process or many: this rank, FSDP2 sharding, sums over ranks, and whole tensors from shards.

With one process everything here does nothing, so that a recipe needs no separate path for it.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torchtune.modules import TransformerSelfAttentionLayer

from torchtune_qwenvl.modules.adapters.nf4 import BLOCK, is_nf4, takes_nf4
from torchtune_qwenvl.modules.trainable import NOT_BY_GRADIENTS

# Longer than rank 0 takes to export a large model while the others wait.
TIMEOUT = timedelta(minutes=60)


@dataclass(frozen=True)
class World:
    """The device and the rank of this process, and the number of processes."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def send(self, tensor: Tensor) -> Tensor:
        """A tensor of the host on the device, without waiting for the device."""
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def sum(self, tensor: Tensor) -> Tensor:
        """`tensor`, summed over all ranks in place, without waiting for the device."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, here: bool) -> bool:
        """Whether `here` is true on any rank; waits for the device."""
        return here if self.size == 1 else self.sum(torch.tensor(float(here), device=self.device)).item() > 0

    def max(self, tensor: Tensor) -> Tensor:
        """`tensor` with the maximum over all ranks of each value, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """`value` of every rank, in their order, on every rank; any small object."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    @contextmanager
    def together(self) -> Iterator[None]:
        """What fails on one rank fails on all with the same message; all ranks must enter.

        Otherwise the others would wait for the one that failed.

        Raises:
            ValueError: an OSError or ValueError of the first rank that had one.
        """
        if self.size == 1:
            yield
            return
        failed: OSError | ValueError | None = None
        try:
            yield
        except (OSError, ValueError) as error:
            failed = error
        reason = next((found for found in self.gather(failed and str(failed)) if found), None)
        if reason is not None:
            raise ValueError(reason) from failed

    def barrier(self) -> None:
        """Wait until every rank is here. Uses a tensor, because NCCL's barrier would guess the device."""
        if self.size > 1:
            self.sum(torch.zeros(1, device=self.device)).item()


def join_world(device: str | None = None) -> World:
    """Join the processes that torchrun has started (`tune run --nproc_per_node N`), or be a single process.

    Args:
        device: "cuda", "cpu", or None for CUDA if available. With CUDA, each process takes the GPU of its
            local rank.

    Raises:
        ValueError: CUDA is not available, or this node has fewer GPUs than processes.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    local_rank, size = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    place = torch.device(kind)
    if place.type == "cuda":
        set_allocator()
        found = torch.cuda.device_count()
        if local_rank >= found:
            raise ValueError(
                f"device: {kind}: process {local_rank} of this node needs GPU {local_rank}, torch sees "
                f"{found}. Start at most that many processes (--nproc_per_node), or set device=cpu."
            )
        place = torch.device("cuda", local_rank if size > 1 else place.index or 0)
        torch.cuda.set_device(place)
    if size == 1:
        return World(place)
    if not dist.is_initialized():
        backend = "nccl" if place.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT, device_id=place if backend == "nccl" else None)
    return World(place, dist.get_rank(), size)


def set_allocator() -> None:
    """Let CUDA's allocator grow its segments, unless the user has configured it.

    With fixed segments memory is lost between them as the lengths of batches change. torch reads the variable
    when memory is first allocated on a GPU.
    """
    if not any(name in os.environ for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")):
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


def leave_world() -> None:
    """End what `join_world` began."""
    if dist.is_initialized():
        dist.destroy_process_group()


def shard(model: nn.Module, world: World, compute_dtype: torch.dtype) -> None:
    """Split every parameter over the ranks (FSDP2); each transformer layer is gathered only while it runs.

    The model computes in `compute_dtype`; gradients are summed in fp32. FSDP does not cast inputs: the model
    does that itself, after it has normalised pixels and computed rotary tables in fp32.
    """
    if world.size == 1:
        return
    policy = MixedPrecisionPolicy(
        param_dtype=compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    _check_quantised(model, world.size)
    mesh = init_device_mesh(world.device.type, (world.size,))
    options: dict[str, Any] = {"mesh": mesh, "mp_policy": policy, "ignored_params": kept_whole(model)}
    for module in list(model.modules()):
        if isinstance(module, TransformerSelfAttentionLayer):
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
                "processes that divides it so (--nproc_per_node), or set quantize_base=false."
            )


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; a plain tensor is returned as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor, gathered; all ranks must call. A plain tensor is returned as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(local_tensor: Tensor, reference: Tensor) -> Tensor:
    """The inverse of `local`: this rank's part, as a tensor sharded like `reference`."""
    if not isinstance(reference, DTensor):
        return local_tensor
    return DTensor.from_local(
        local_tensor.to(reference.device),
        reference.device_mesh,
        reference.placements,
        run_check=False,
        shape=reference.shape,
        stride=reference.stride(),
    )


class GatheredState(Mapping[str, Tensor]):
    """`{name: whole tensor on the CPU}` of the trained parameters, gathered when rank 0 reads them.

    Gathering needs every rank, so the others wait inside `with` while rank 0 works:

        with GatheredState(model, world) as state:
            if world.is_main:
                save_folder(state, ...)
    """

    def __init__(self, model: nn.Module, world: World) -> None:
        self._parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._names = list(self._parameters)
        self._world = world

    def __getitem__(self, name: str) -> Tensor:
        parameter = self._parameters[name]
        if isinstance(parameter, DTensor):
            self._call(self._names.index(name))
        return whole(parameter.detach()).cpu()

    def __contains__(self, name: object) -> bool:
        # Mapping's own method would gather the tensor to find out.
        return name in self._parameters

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __enter__(self) -> "GatheredState":
        if self._world.size > 1 and not self._world.is_main:
            while (index := self._call(-1)) >= 0:
                whole(self._parameters[self._names[index]].detach())
        return self

    def __exit__(self, *error: object) -> None:
        if self._world.size > 1 and self._world.is_main:
            self._call(-1)

    def _call(self, index: int) -> int:
        """Rank 0 sends the index of the next tensor, or -1 for the end; the others receive it."""
        message = torch.tensor(index, device=self._world.device)
        dist.broadcast(message, src=0)
        return int(message)
