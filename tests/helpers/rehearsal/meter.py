"""What a GPU would be asked to do: kernels, their traffic and operations, memory in use, copies to it."""

import sys
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch._C import _SDPBackend as SDPBackend
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass

from rehearsal.cost import ATTENTION, FREE, is_half, operations, tensors_in, traffic
from rehearsal.machine import storage_of

BLOCK = 512  # the allocator rounds up to this


@dataclass(frozen=True)
class Card:
    """What a GPU can do, and the share of it that good kernels reach.

    Attributes:
        peak: dense bf16 operations per second.
        fp32: operations per second of fp32 products.
        bandwidth: bytes per second.
        matmul, attention, memory: shares of these peaks that kernels reach.
        shortest: seconds of the shortest kernel.
    """

    peak: float = 989e12
    fp32: float = 67e12
    bandwidth: float = 3.35e12
    matmul: float = 0.72
    attention: float = 0.5
    memory: float = 0.8
    shortest: float = 2.5e-6


H100 = Card()


@dataclass
class Totals:
    """Sums over kernels."""

    kernels: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    flops: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, moved: int, flops: float, seconds: float) -> None:
        """Count one kernel."""
        self.kernels[name] += 1
        self.bytes[name] += moved
        self.flops[name] += flops
        self.seconds[name] += seconds


class Meter(TorchDispatchMode):
    """Counts everything that runs inside it on CUDA; enter it inside of `fake_gpu`.

    Args:
        pinned: what `fake_gpu` has pinned.
        card: for the seconds of the roofline.

    Attributes:
        totals: sums by kernel.
        live, peak: bytes of CUDA memory in use, now and at most.
        waits: where in the package a copy from the host makes the host wait, or comes from pageable memory.
        copies: number of copies from the host.
        segments: lengths of the segments that the next attention kernel gets.
        backends: attention's library -> kernels.
    """

    def __init__(self, pinned: Mapping[int, Tensor], card: Card = H100) -> None:
        super().__init__()
        self.totals = Totals()
        self.live = self.peak = self.copies = 0
        self.waits: Counter[str] = Counter()
        self.segments: Sequence[int] = ()
        self.backends: Counter[str] = Counter()
        self._of_tokens: dict[int, Sequence[int]] = {}
        self._pinned, self._card = pinned, card
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._schema.name.split("::")[1]
        inputs, outputs = tensors_in((args, kwargs)), tensors_in(out)
        for tensor in outputs:
            self.track(tensor)
        kinds = {tensor.device.type for tensor in inputs + outputs}
        if "cuda" not in kinds:
            return out
        if name in ("_to_copy", "copy_") and inputs[-1].device.type == "cpu":
            self._copied(inputs[-1], args, kwargs)
        elif name not in FREE:
            self._ran(func, name, args, inputs, outputs, out)
        return out

    def track(self, tensor: Tensor) -> None:
        """Count a tensor's memory for as long as it exists; of a quantised one, that of its parts."""
        if is_traceable_wrapper_subclass(tensor):
            for name in tensor.__tensor_flatten__()[0]:
                self.track(getattr(tensor, name))
            return
        storage = tensor.untyped_storage()
        key = id(storage)
        if tensor.device.type != "cuda" or key in self._known:
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size

    def _copied(self, source: Tensor, args: Any, kwargs: Any) -> None:
        self.copies += 1
        at_once = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
        if not at_once or storage_of(source) not in self._pinned:
            self.waits[f"{_place()} {'pageable' if at_once else 'blocking'}"] += 1

    def memory_seconds(self, moved: int) -> float:
        """Seconds of a kernel that only moves bytes."""
        return max(moved / (self._card.memory * self._card.bandwidth), self._card.shortest)

    def product_seconds(self, func: Any, name: str, args: Sequence[Any], out: Any) -> float:
        """Seconds of a product or of attention."""
        inputs, outputs = tensors_in(args), tensors_in(out)
        flops = operations(func, name, args, out, self.segments)
        return self._seconds(name, flops, traffic(name, inputs, outputs), inputs)

    def _ran(self, func: Any, name: str, args: Any, inputs: Any, outputs: Any, out: Any) -> None:
        if name in ATTENTION:  # the backward pass has the segments of the forward pass over as many tokens
            tokens = len(args[1] if name.endswith("backward") else args[0])
            if not name.endswith("backward"):
                self._of_tokens[tokens] = self.segments
                self.backends["FLASH_ATTENTION" if len(args) < 15 else SDPBackend(args[14]).name] += 1
            flops = operations(func, name, args, out, self._of_tokens[tokens])
        else:
            flops = operations(func, name, args, out, ())
        moved = traffic(name, inputs, outputs)
        self.totals.add(
            _label(name, inputs, outputs), moved, flops, self._seconds(name, flops, moved, inputs)
        )

    def _seconds(self, name: str, flops: float, moved: int, inputs: Sequence[Tensor]) -> float:
        card = self._card
        share = card.attention if name in ATTENTION else card.matmul
        compute = flops / (share * (card.peak if is_half(inputs) else card.fp32))
        return max(compute, self.memory_seconds(moved))


def _place() -> str:
    """The innermost function of the package that is running."""
    frame = sys._getframe()
    while frame is not None and "torchtune_qwenvl" not in frame.f_code.co_filename:
        frame = frame.f_back
    if frame is None:
        return "outside of the package"
    return f"{frame.f_code.co_filename.rpartition('torchtune_qwenvl/')[2]}:{frame.f_code.co_name}"


def _label(name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> str:
    if name != "_to_copy":
        return name
    return f"cast {_short(inputs[0])} -> {_short(outputs[0])}"


def _short(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
