"""FSDP2 over a fake process group on the fake GPU: one rank of many, whose collectives do nothing."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.distributed.fsdp._fully_shard._fsdp_collectives as collectives
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from rehearsal.cost import tensors_in
from rehearsal.machine import GPU, gpu_answers
from rehearsal.meter import Meter
from torchtune_qwenvl.distributed import World, like, local, shard
from torchtune_qwenvl.modules import layers
from torchtune_qwenvl.modules.adapters.nf4 import is_nf4, quantised
from torchtune_qwenvl.modules.batch import on_device


class _Idle:
    """Stands for CUDA's streams and events, between which there is nothing to wait for."""

    stream_id, device_index, device_type = 0, 0, 1

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __enter__(self) -> "_Idle":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: _Idle()


class _FakeEmpty(TorchFunctionMode):
    """FSDP makes an empty CUDA tensor while it wraps a module, outside of the fake mode."""

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        self._mode = mode

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty and str(kwargs.get("device", "")).startswith("cuda"):
            with self._mode:
                return func(*args, **kwargs)
        return func(*args, **kwargs)


@contextmanager
def idle_streams() -> Iterator[None]:
    """A context without streams, events and what records them."""
    with ExitStack() as stack:
        for name in ("Stream", "Event", "stream", "current_stream"):
            stack.enter_context(mock.patch.object(torch.cuda, name, _Idle))
        if hasattr(collectives, "record_grad_output_stream"):
            stack.enter_context(mock.patch.object(collectives, "record_grad_output_stream"))
        yield


def pass_of_a_rank(model: nn.Module, inputs: dict[str, Any], ranks: int, optimizer: float) -> Meter:
    """Forward and backward pass of rank 0 of `ranks`, as the recipe shards the model.

    Args:
        model: on the meta device.
        inputs: a batch as collate makes it.
        ranks: number of ranks.
        optimizer: bytes of the optimizer's state per byte of a trained parameter.
    """
    if not dist.is_initialized():
        dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with idle_streams(), gpu_answers({}):
        with _FakeEmpty(mode):
            shard(model, World(GPU, 0, ranks), torch.bfloat16)
        with torch.autograd.set_multithreading_enabled(False), mode:
            return _run(model.train(), inputs, optimizer)


@torch.no_grad()
def _to_gpu(model: nn.Module) -> None:
    """Fake memory for this rank's shards; quantised weights get theirs as they are loaded, see loading.py."""
    quantised_ones = [name for name, p in model.named_parameters() if is_nf4(local(p))]
    model.to_empty(device=GPU)
    for name in quantised_ones:
        parameter = model.get_parameter(name)
        shard = local(parameter)
        value = quantised(torch.empty(shard.shape, dtype=shard.dtype, device=GPU))
        owner, _, leaf = name.rpartition(".")
        weight = nn.Parameter(like(value, parameter), requires_grad=False)
        setattr(model.get_submodule(owner), leaf, weight)


def _run(model: nn.Module, inputs: dict[str, Any], optimizer: float) -> Meter:
    _to_gpu(model)
    with Meter({}, resizing=True) as meter:
        for tensor in tensors_in(list(model.parameters())):
            meter.track(tensor)
        trained = [p for p in model.parameters() if p.requires_grad]
        meter.state = [  # kept, as the optimizer keeps it
            torch.empty(int(optimizer * p.to_local().nbytes), dtype=torch.uint8, device=GPU) for p in trained
        ]
        attend = layers.segment_attention

        def noting(q: Any, k: Any, v: Any, segments: Any, *rest: Any) -> Any:
            meter.segments = segments.lengths
            return attend(q, k, v, segments, *rest)

        with mock.patch.object(layers, "segment_attention", noting):
            with torch.autocast("cuda", torch.bfloat16):
                loss, _ = model(**on_device(inputs, GPU))
            loss.backward()
        meter.refresh()
    return meter
