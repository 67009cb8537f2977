"""The fake GPU: a Hopper whose tensors have shapes, dtypes and a device, but no values."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
import torch.cuda.amp.common
import torch.nn.attention.varlen as varlen
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

GPU = torch.device("cuda", 0)
CUDNN, CAPABILITY = 92000, (9, 0)


def storage_of(tensor: Tensor) -> int:
    """What tensors that share memory have in common, also fake ones."""
    return tensor.untyped_storage()._cdata


@contextmanager
def gpu_answers(pinned: dict[int, Tensor]) -> Iterator[None]:
    """A context in which torch gets a Hopper's answers to its questions about the device.

    Args:
        pinned: gets every tensor that is pinned here, by `storage_of`.
    """

    def pin(tensor: Tensor, *_: object) -> Tensor:
        pinned[storage_of(tensor)] = tensor
        return tensor

    answers = {
        (torch.cuda, "is_bf16_supported"): lambda *_, **__: True,
        (torch.cuda, "get_device_capability"): lambda *_: CAPABILITY,
        (torch.cuda, "current_device"): lambda: 0,
        (torch.cuda.amp.common, "amp_definitely_not_available"): lambda: False,
        (varlen, "_cudnn_version_and_major_capability"): lambda _: (CUDNN, CAPABILITY[0]),
        (varlen, "_should_use_cudnn"): lambda _: True,
        (varlen, "_cudnn_decode_disabled"): lambda _: False,
        (Tensor, "pin_memory"): pin,
    }
    with ExitStack() as stack:
        for (owner, name), answer in answers.items():
            if hasattr(owner, name):
                stack.enter_context(mock.patch.object(owner, name, answer))
        yield


@contextmanager
def fake_gpu(pinned: dict[int, Tensor]) -> Iterator[FakeTensorMode]:
    """A context in which new tensors are fake, also those "on" CUDA.

    Autograd runs in the calling thread: its other threads would ask the driver for a context.

    Args:
        pinned: see `gpu_answers`.
    """
    with (
        gpu_answers(pinned),
        torch.autograd.set_multithreading_enabled(False),
        FakeTensorMode(allow_non_fake_inputs=True) as mode,
    ):
        yield mode
