"""The header of a safetensors file, checked entry by entry against the bytes that follow.

A header that lies about its tensors would be read as other weights, or fail somewhere inside of the library.
So what the format promises is checked here, and every error names the file and the tensor.
Source: https://github.com/huggingface/safetensors, "Format".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchtune_qwenvl.json_files import parse_json

MOST_BYTES = 100_000_000  # of a header; the library's limit
_AGAIN = "download or copy it again"


def read_header(path: Path, itemsizes: Mapping[str, int]) -> tuple[dict[str, Any], dict[str, str]]:
    """The entries of `path` in the order of their bytes, and its metadata.

    Args:
        path: the file.
        itemsizes: bytes per value of the known dtypes, by their names in headers.

    Returns:
        Tensor name to `dtype` and `shape` as the header has them, and the metadata.

    Raises:
        ValueError: it is no safetensors file, was cut off, or its header does not describe its bytes.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(f"{path}: no complete safetensors file ({size} bytes); {_AGAIN}")
        if length > MOST_BYTES:
            raise ValueError(f"{path}: its safetensors header has {length} bytes, no file has so many")
        raw = file.read(length)
    try:
        header = parse_json(raw)
        metadata = _metadata(header.pop("__metadata__", None))
        entries = {name: _entry(name, entry, itemsizes) for name, entry in header.items()}
    except ValueError as error:
        raise ValueError(f"{path}: its safetensors header cannot be read: {error}; {_AGAIN}") from error
    ordered = dict(sorted(entries.items(), key=lambda item: item[1]["data_offsets"]))
    _check_order(path, ordered, size - 8 - length)
    return ordered, metadata


def _metadata(found: Any) -> dict[str, str]:
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError(f"__metadata__: expected texts by name, got {_short(found)}")
    return found


def _entry(name: str, entry: Any, itemsizes: Mapping[str, int]) -> dict[str, Any]:
    """A tensor's entry; a ValueError if its parts are not what the format says."""
    where = f"tensor {_short(name)}"
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise ValueError(f"{where}: expected dtype, shape and data_offsets, got {_short(entry)}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in itemsizes:
        raise ValueError(
            f"{where}: dtype {_short(dtype)} is not known, expected one of {', '.join(itemsizes)}"
        )
    if not _are_counts(shape):
        raise ValueError(f"{where}: expected a shape of whole numbers, got {_short(shape)}")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise ValueError(f"{where}: expected two data_offsets, got {_short(offsets)}")
    needed = math.prod(shape) * itemsizes[dtype]
    if offsets[1] - offsets[0] != needed:
        raise ValueError(f"{where}: {dtype} {shape} takes {needed} bytes, its data_offsets are {offsets}")
    return entry


def _check_order(path: Path, entries: Mapping[str, Any], held: int) -> None:
    """Tensors lie one after the other, without gaps, from the first byte to the last."""
    end = 0
    for name, entry in entries.items():
        start, stop = entry["data_offsets"]
        if start != end:
            what = "a gap before" if start > end else "an overlap with"
            raise ValueError(
                f"{path}: its safetensors header has {what} tensor {_short(name)}, which begins at byte "
                f"{start}: the tensor before ends at {end}; {_AGAIN}"
            )
        end = stop
    if end != held:
        raise ValueError(
            f"{path}: its header promises {end} bytes of tensors, the file holds {held}: "
            + ("it was cut off" if end > held else "something was added")
            + f"; {_AGAIN}"
        )


def _are_counts(found: Any) -> bool:
    return isinstance(found, list) and all(type(one) is int and 0 <= one < 2**63 for one in found)


def _short(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
