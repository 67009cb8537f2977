"""One safetensors file: its header, checked against the bytes that follow, and a writer that streams.

The library's `save_file` needs every tensor of a file in memory at once. Here a checkpoint is written one
tensor at a time, so that a model gathered from several ranks or cast to another dtype is in memory only once.
The format: 8 bytes with the header's length, a JSON header of names, dtypes, shapes and offsets, then the
tensors' bytes without gaps (https://github.com/huggingface/safetensors, "Format").
"""

import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from torchtune_qwenvl.checkpoints.reading.header import read_header

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """A tensor as a header describes it."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Shard:
    """A safetensors file's header: its tensors in the order of their bytes."""

    file: str
    entries: dict[str, Entry]
    metadata: dict[str, str]

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self.entries.values())

    def cast(self, dtype: torch.dtype) -> "Shard":
        """The same tensors with every floating one as `dtype`."""
        return replace(
            self,
            entries={
                name: replace(entry, dtype=dtype) if entry.dtype.is_floating_point else entry
                for name, entry in self.entries.items()
            },
        )


def read_shard(path: Path) -> Shard:
    """The header of `path`; a ValueError that names the file and the tensor if it does not fit the bytes."""
    found, metadata = read_header(path, {name: dtype.itemsize for name, dtype in DTYPES.items()})
    entries = {name: Entry(DTYPES[entry["dtype"]], tuple(entry["shape"])) for name, entry in found.items()}
    return Shard(path.name, entries, metadata)


def write_shard(path: Path, shard: Shard, tensors: Iterable[torch.Tensor]) -> None:
    """Write `path` with the header of `shard` and one tensor for each of its entries, in their order."""
    header: dict[str, object] = {"__metadata__": shard.metadata} if shard.metadata else {}
    offset = 0
    for name, entry in shard.entries.items():
        header[name] = {
            "dtype": DTYPE_NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [offset, offset + entry.nbytes],
        }
        offset += entry.nbytes
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little"))
        file.write(raw)
        for (name, entry), tensor in zip(shard.entries.items(), tensors, strict=True):
            if (tensor.dtype, tuple(tensor.shape)) != (entry.dtype, entry.shape):
                raise ValueError(f"{name}: expected {entry}, got {tensor.dtype} {tuple(tensor.shape)}")
            file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())
