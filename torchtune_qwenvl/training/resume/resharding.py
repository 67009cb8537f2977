"""The shards of a `step_N/` folder, cut anew: for another number of processes that share a copy of the model.

A shard has rows of the whole, in the order of the files. Files are mapped, so each process reads the rows
that it keeps, and no process ever holds the whole.

    saved by 2     0 1 2 | 3 4        5 rows
    read by 3      0 1 | 2 3 | 4      the second one reads a row of each file
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchtune_qwenvl.distributed import rows_of
from torchtune_qwenvl.training.resume.meta import Meta, rank_file

Cut = Callable[[Sequence[Tensor]], Tensor]  # the rows of all shards -> this rank's


def cut_anew(folder: Path, meta: Meta, model: nn.Module) -> dict[str, Any]:
    """{"parameters": …, "optimizer": …} as a file of this rank would hold them.

    Args:
        folder: `step_N/`, whose files have been checked.
        meta: its run.json.
        model: as it is sharded now; parameters that it does not have stay out.

    Raises:
        ValueError: an optimizer's state that cannot be cut into rows.
    """
    shards = [
        torch.load(folder / rank_file(rank), map_location="cpu", weights_only=True, mmap=True)
        for rank in range(meta.shards)
    ]
    ours = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    pieces = {name: [shard["parameters"][name] for shard in shards] for name in shards[0]["parameters"]}

    def cut_like(name: str) -> Cut:
        return lambda tensors: rows_from(tensors, ours[name].shape[0], rows_of(ours[name]))

    parameters = {name: cut_like(name)(found) if name in ours else found[0] for name, found in pieces.items()}
    states = [shard["optimizer"]["state"] for shard in shards]
    state = {}
    for name in ours.keys() & states[0].keys():
        where = f"{folder}: the optimizer's state of {name}"
        shapes = [tensor.shape for tensor in pieces[name]]
        state[name] = _cut_entries([one.get(name, {}) for one in states], shapes, cut_like(name), where)
    return {"parameters": parameters, "optimizer": {**shards[0]["optimizer"], "state": state}}


def rows_from(pieces: Sequence[Tensor], rows: int, wanted: slice) -> Tensor:
    """Some rows of a tensor, as a copy.

    Args:
        pieces: its rows in their order; or the whole, in each of them.
        rows: of the whole.
        wanted: which.
    """
    if all(len(piece) == rows for piece in pieces):
        return pieces[0][wanted].clone()
    found, first = [], 0
    for piece in pieces:
        start, stop = (min(max(at - first, 0), len(piece)) for at in (wanted.start, wanted.stop))
        found.append(piece[start:stop])
        first += len(piece)
    return torch.cat(found)


def _cut_entries(
    entries: Sequence[Mapping[str, Any]],
    shapes: Sequence[torch.Size],
    cut: Cut,
    where: str,
) -> dict[str, Any]:
    """A parameter's state: what has the shape of its shards is cut as they are, the rest is alike in all."""
    state: dict[str, Any] = {}
    for key in dict.fromkeys(key for one in entries for key in one):
        values = [one.get(key) for one in entries]
        tensors = [value for value in values if isinstance(value, Tensor) and value.dim()]
        if not tensors and all(value == values[0] for value in values):
            first = values[0]
            state[key] = first.clone() if isinstance(first, Tensor) else first
        elif len(tensors) == len(values) and [tensor.shape for tensor in tensors] == list(shapes):
            state[key] = _cut_values(tensors, cut)
        else:
            raise ValueError(
                f"{where}, '{key}', has no rows that go with the parameter's, so it cannot be cut anew. "
                f"Resume with as many processes per copy of the model as before ({len(entries)}: "
                "--nproc_per_node over all nodes, and data_parallel_shard_degree)."
            )
    return state


def _cut_values(tensors: Sequence[Tensor], cut: Cut) -> Tensor:
    """This rank's rows of a state; torchao's of 8 or 4 bits stay so if each block lies in a row."""
    example: Any = tensors[0]
    if not all(map(_is_quantised, tensors)) or example.shape[1:].numel() % example.block_size:
        return cut([tensor.dequantize() if _is_quantised(tensor) else tensor for tensor in tensors])
    parts = {
        name: cut([getattr(tensor, name).reshape(len(tensor), -1) for tensor in tensors])
        for name in ("codes", "scale")
    }
    shape = (len(parts["scale"]), *example.shape[1:])
    signed = {"signed": example.signed} if hasattr(example, "signed") else {}
    ours = type(example).zeros(shape, block_size=example.block_size, **signed)
    for name, rows in parts.items():
        getattr(ours, name).copy_(rows.reshape(getattr(ours, name).shape))
    return ours


def _is_quantised(tensor: Tensor) -> bool:
    return type(tensor) is not Tensor and hasattr(tensor, "block_size")
