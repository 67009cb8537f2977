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
from torchtune_qwenvl.estimating.cards import CARDS, Card

BLOCK = 512  # the allocator rounds up to this
H100 = CARDS["h100"]
OFTEN = 5  # operations between two looks at storages that may be resized


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
        resizing: whether storages are resized while they exist, as FSDP does.

    Attributes:
        totals: sums by kernel.
        live, peak: bytes of CUDA memory in use, now and at most.
        waits: where in the package a copy from the host makes the host wait, or comes from pageable memory.
        copies: number of copies from the host.
        segments: lengths of the segments that the next attention kernel gets.
        backends: attention's library -> kernels.
    """

    def __init__(self, pinned: Mapping[int, Tensor], card: Card = H100, resizing: bool = False) -> None:
        super().__init__()
        self.totals = Totals()
        self.live = self.peak = self.copies = 0
        self.waits: Counter[str] = Counter()
        self.segments: Sequence[int] = ()
        self.backends: Counter[str] = Counter()
        self._of_tokens: dict[int, Sequence[int]] = {}
        self._pinned, self._card = pinned, card
        self._known: dict[int, int] = {}
        self._resized: dict[int, weakref.ref[Any]] | None = {} if resizing else None
        self._operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._schema.name.split("::")[1]
        inputs, outputs = tensors_in((args, kwargs)), tensors_in(out)
        for tensor in outputs:
            self.track(tensor)
        self._operations += 1
        if self._resized is not None and self._operations % OFTEN == 0:
            self.refresh()
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
                if isinstance(part := getattr(tensor, name), Tensor):  # a sharded one also has its mesh
                    self.track(part)
            return
        storage = tensor.untyped_storage()
        key = id(storage)
        if tensor.device.type != "cuda" or key in self._known:
            return
        self._known[key] = 0
        if self._resized is not None:
            self._resized[key] = weakref.ref(storage)
        self._sized(key, storage.nbytes())
        weakref.finalize(storage, self._freed, key)

    def refresh(self) -> None:
        """Look at the sizes of all storages again."""
        for key, reference in list((self._resized or {}).items()):
            if (storage := reference()) is not None:
                self._sized(key, storage.nbytes())

    def _sized(self, key: int, size: int) -> None:
        size = -(-size // BLOCK) * BLOCK
        self.live += size - self._known[key]
        self._known[key] = size
        self.peak = max(self.peak, self.live)

    def _freed(self, key: int) -> None:
        self.live -= self._known.pop(key)
        if self._resized is not None:
            self._resized.pop(key, None)

    def _copied(self, source: Tensor, args: Any, kwargs: Any) -> None:
        self.copies += 1
        at_once = kwargs.get("non_blocking", args[2] if len(args) > 2 else False)
        if not at_once or storage_of(source) not in self._pinned:
            self.waits[f"{_place()} {'pageable' if at_once else 'blocking'}"] += 1

    def memory_seconds(self, moved: int) -> float:
        """Seconds of a kernel that only moves bytes."""
        return self._card.moving(moved)

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
        share = self._card.attention if name in ATTENTION else self._card.matmul
        return self._card.computing(flops, moved, share, is_half(inputs))


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
