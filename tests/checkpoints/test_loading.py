"""How values get from the files to the device."""

from types import SimpleNamespace

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from torchtune_qwenvl.checkpoints.loading import fill


class Transfers(TorchDispatchMode):
    """Records the dtypes of operations between devices."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[torch.dtype, torch.dtype]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, out)) if isinstance(x, torch.Tensor)]
        if len({x.device.type for x in tensors}) > 1:
            there = [x.dtype for x in tensors if x.device.type == "meta"]
            self.seen += [(x.dtype, there[-1]) for x in tensors if x.device.type == "cpu"]
        return out


def test_values_are_sent_in_their_own_dtype_and_cast_on_the_device() -> None:
    """A bf16 weight that trains is fp32 on the device; casting it before would send twice the bytes."""
    with torch.device("meta"):
        model = nn.Linear(4, 3, bias=False)
    stored = SimpleNamespace(read=lambda start, stop: torch.ones(stop - start, 4, dtype=torch.bfloat16))
    with Transfers() as transfers:
        fill(model, {"weight": stored}, torch.device("meta"))
    assert transfers.seen == [(torch.bfloat16, torch.bfloat16)]
    assert model.weight.dtype == torch.float32
