"""Checkpoints whose weights are no plain floats: FP8 with scales per block is read, all others are refused.

A block-scaled FP8 checkpoint has, for a weight [.., rows, columns], a tensor of the same name that ends in
`_scale_inv`, [.., rows / 128, columns / 128]; a value is `fp8 * scale` of its block. Source: transformers,
`integrations/finegrained_fp8.py`; DeepSeek-V3, arXiv:2412.19437, section 3.3.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from torchtune_qwenvl.entries import COUNT, list_of

SCALE = "_scale_inv"
_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_EXPONENTS = torch.float8_e8m0fnu  # powers of two, as scales
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_KEY = "quantization_config"
# How files call a format -> how people do.
_NAMES = {
    "awq": "AWQ",
    "gptq": "GPTQ",
    "fp8": "FP8",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "fbgemm_fp8": "FP8 of fbgemm",
    "modelopt": "NVIDIA ModelOpt",
    "hqq": "HQQ",
    "auto-round": "AutoRound",
}
# Ends of tensor names by which a format is known where config.json does not name it.
_MARKS = {
    "GPTQ": (".g_idx",),
    "AWQ or GPTQ": (".qweight", ".qzeros"),
    "compressed-tensors": (".weight_packed", ".weight_shape"),
    "bitsandbytes": (".SCB", ".absmax", ".quant_map", ".quant_state.bitsandbytes__nf4"),
    "FP8": (".weight_scale", SCALE),
}
_SUFFIX = re.compile(
    r"[-_](awq|gptq|fp8|bnb|unsloth|int4|int8|4bit|8bit|quantized|w4a16|w8a8|w8a16|nvfp4|mxfp4|hqq|autoround)\b.*$",
    re.IGNORECASE,
)


class _Entry(Protocol):
    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def shape(self) -> tuple[int, ...]: ...


class Scaled(NamedTuple):
    """How to read an FP8 weight.

    Attributes:
        scale: name of the tensor with its scales.
        block: rows and columns that share a scale.
    """

    scale: str
    block: tuple[int, int]

    def dequantise(self, weight: Tensor, scales: Tensor, first_row: int, dtype: torch.dtype) -> Tensor:
        """Values of `weight` [.., r, c], whose first row is row `first_row` of the whole, as `dtype`."""
        if scales.numel() == 1:
            return (weight.float() * scales.float()).to(dtype)
        rows = torch.arange(first_row, first_row + weight.shape[-2]) // self.block[0]
        columns = torch.arange(weight.shape[-1]) // self.block[1]
        return (weight.float() * scales.float()[..., rows, :][..., columns]).to(dtype)


def find_scaled(path: Path, config: Mapping[str, Any], entries: Mapping[str, _Entry]) -> dict[str, Scaled]:
    """Name of each FP8 weight -> how to read it; empty for a plain checkpoint.

    Args:
        path: the folder, for errors.
        config: config.json.
        entries: the folder's tensors.

    Raises:
        ValueError: a tensor is quantised in another way, or its scales do not fit; names format and tensor.
    """
    block = (config.get(_KEY) or {}).get("weight_block_size")
    found: dict[str, Scaled] = {}
    for name, entry in entries.items():
        scale = entries.get(name + SCALE)
        if entry.dtype in _FP8 and scale is not None and scale.dtype in (*_FLOATS, _EXPONENTS):
            found[name] = Scaled(name + SCALE, _block(path, name, entry.shape, scale.shape, block))
    scales = {one.scale for one in found.values()}
    for name, entry in entries.items():
        if entry.dtype not in _FLOATS and name not in found and name not in scales:
            kind = "FP8" if entry.dtype in _FP8 else None
            raise ValueError(refusal(path, config, entries, name, kind))
    return found


def is_quantised(config: Mapping[str, Any]) -> bool:
    """Whether config.json says that weights are quantised."""
    return isinstance(config.get(_KEY), Mapping)


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json without the note on quantisation, as it is true of dequantised weights."""
    text = config.get("text_config")
    nested = (
        {"text_config": {n: v for n, v in text.items() if n != _KEY}} if isinstance(text, Mapping) else {}
    )
    return {name: value for name, value in {**config, **nested}.items() if name != _KEY}


def refusal(
    path: Path,
    config: Mapping[str, Any],
    names: Collection[str] = (),
    example: str | None = None,
    kind: str | None = None,
) -> str:
    """What is wrong with a quantised folder, and which checkpoint to take instead.

    Args:
        path: the folder.
        config: config.json.
        names: of its tensors.
        example: the tensor that cannot be read.
        kind: the format, if neither config.json nor names tell it.
    """
    method = str((config.get(_KEY) or {}).get("quant_method", "")).lower()
    known = [format for format, marks in _MARKS.items() if any(name.endswith(marks) for name in names)]
    kind = _NAMES.get(method) or method or next(iter(known), kind or "in a form that is not known here")
    base = _SUFFIX.sub("", path.absolute().name)
    instead = base if base != path.absolute().name else "the one that it was made from"
    at = f" (tensor {example})" if example else ""
    return (
        f"{path}: a quantised checkpoint, {kind}{at}, which cannot be trained. Take the unquantised "
        f"checkpoint, {instead}; with model.quantize_base=true its frozen weights take 4 bits in memory"
    )


def _block(
    path: Path, name: str, shape: tuple[int, ...], scales: tuple[int, ...], stated: Any
) -> tuple[int, int]:
    """Rows and columns per scale: as stated if they fit, else those that the shapes leave."""
    if math.prod(scales) == 1:
        return (1, 1)
    grids = []
    if list_of(COUNT).holds(stated) and len(stated) == 2 <= len(shape):
        grids.append((stated[0], stated[1]))
    sides = list(zip(shape[-2:], scales[-2:], strict=False))
    if len(shape) == len(scales) >= 2 and all(one > 0 and side % one == 0 for side, one in sides):
        grids.append((sides[0][0] // sides[0][1], sides[-1][0] // sides[-1][1]))
    for rows, columns in grids:
        if (*shape[:-2], math.ceil(shape[-2] / rows), math.ceil(shape[-1] / columns)) == tuple(scales):
            return rows, columns
    raise ValueError(
        f"{path}: tensor {name} of shape {list(shape)} has scales of shape {list(scales)}, which fit no "
        f"blocks (weight_block_size is {stated!a}); download it again"
    )
