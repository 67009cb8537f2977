"""Sharded tensors: this rank's part, the whole, and which rows of the whole a rank has.

The first axis is cut as by `torch.chunk`. With copies (HSDP), each copy is cut alike.

    10 rows, 4 shards     rows 0-2, 3-5, 6-8, 9
"""

import math
from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from torchtune_qwenvl.distributed.world import World


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


def rows_of(tensor: Tensor) -> slice:
    """Which rows of the whole this rank has; all rows of a tensor that is not sharded."""
    if not isinstance(tensor, DTensor):
        return slice(0, tensor.shape[0])
    return cut(tensor.shape[0], *_place(tensor))


def cut(rows: int, index: int, count: int) -> slice:
    """The rows of shard `index` of `count`."""
    each = math.ceil(rows / count)
    return slice(min(rows, index * each), min(rows, (index + 1) * each))


def shard_of(tensor: Tensor, reference: DTensor) -> Tensor:
    """This rank's part of a whole tensor, sharded like `reference`; by `chunk`, as NF4 has no rows."""
    index, count = _place(reference)
    return tensor.chunk(count)[index]


def _place(tensor: DTensor) -> tuple[int, int]:
    """The number of this rank's shard, and how many shards there are."""
    axes = [axis for axis, placement in enumerate(tensor.placements) if placement.is_shard()]
    if not axes:
        return 0, 1
    return tensor.device_mesh.get_local_rank(axes[0]), tensor.device_mesh.size(axes[0])


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
