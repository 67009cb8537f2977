"""This rank among all: its device, and what ranks tell each other."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from torchtune_qwenvl.distributed.mesh import SHARD, build_mesh, degrees_of

# Longer than rank 0 takes to export a large model while the others wait.
TIMEOUT = timedelta(minutes=60)


@dataclass(frozen=True)
class World:
    """The device and the rank of this process, the number of processes, and how they lie on the mesh.

    Attributes:
        device: of this process.
        rank: of this process among all.
        size: number of processes.
        mesh: of `join_world`; None: all processes shard one copy of the model.
    """

    device: torch.device
    rank: int = 0
    size: int = 1
    mesh: DeviceMesh | None = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def shards(self) -> int:
        """How many processes share one copy of the model; ranks 0 to `shards` - 1 share the first."""
        return self.size if self.mesh is None else self.mesh[SHARD].size()

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


def join_world(device: str | None = None, degrees: Mapping[str, int | None] | None = None) -> World:
    """Join the processes that torchrun has started (`tune run --nproc_per_node N`), or be a single process.

    Args:
        device: "cuda", "cpu", or None for CUDA if available. With CUDA, each process takes the GPU of its
            local rank.
        degrees: what `degrees_of` takes; None: one copy of the model, sharded over all processes.

    Raises:
        ValueError: CUDA is not available, this node has fewer GPUs than processes, or the degrees do not
            multiply to the number of processes.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    local_rank, size = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    found_degrees = degrees_of(size, degrees or {})
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
    return World(place, dist.get_rank(), size, build_mesh(place.type, found_degrees))


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
