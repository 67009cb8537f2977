"""Where each of our parameters lies in a checkpoint folder, found from the files' headers alone.

plan = plan_weights(files, table, shapes)
plan["decoder.norm.scale"].read()         one tensor from the mapped file
plan["decoder.norm.scale"].read(0, 16)    some rows of it: what one rank of a sharded run keeps
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from torchtune_qwenvl.checkpoints.folder import CheckpointFolder
from torchtune_qwenvl.models.weight_table import WeightTable, fits, lies_transposed
from torchtune_qwenvl.modules.adapters.lora import is_adapter

_OTHER_MODEL = (
    "the model is of another size than the folder, or config.json and weights do not belong together"
)


@dataclass(frozen=True)
class StoredWeight:
    """One of our parameters where it lies: part `index` of `count` of the tensor `name` in `files`, along
    axis 0; `transposed`: the matrices of a stack lie the other way round."""

    files: CheckpointFolder
    name: str
    index: int
    count: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    transposed: bool = False

    def read(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows [start, stop) in our shape and the file's dtype, backed by the mapped file: copy before
        writing."""
        rows = self.shape[0]
        stop = rows if stop is None else min(stop, rows)
        first = self.index * rows
        everything = self.count == 1 and (start, stop) == (0, rows)
        data = (
            self.files.read(self.name)
            if everything
            else self.files.read(self.name, first + start, first + stop)
        )
        if self.transposed:
            return data.transpose(1, 2)
        return data.reshape(max(0, stop - start), *self.shape[1:])


@dataclass(frozen=True)
class StackedWeight:
    """One of our stacks [E, rows, columns] whose experts lie apart, `names[expert][part]` in `files`."""

    files: CheckpointFolder
    names: tuple[tuple[str, ...], ...]
    shape: tuple[int, ...]
    dtype: torch.dtype

    def read(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Experts [start, stop) in the files' dtype."""
        experts = [torch.cat([self.files.read(name) for name in parts]) for parts in self.names[start:stop]]
        return torch.stack(experts) if experts else torch.empty(0, *self.shape[1:], dtype=self.dtype)


Stored = StoredWeight | StackedWeight


def plan_weights(
    files: CheckpointFolder, table: WeightTable, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, StoredWeight | StackedWeight]:
    """Find every parameter in the files without reading any.

    Args:
        files: the open folder.
        table: the family's names.
        shapes: our parameters' names and shapes; those of adapters, which files do not hold, are passed over.

    Returns:
        Our name -> where it lies, in the order of the files.

    Raises:
        ValueError: a tensor that no parameter takes, a parameter without tensor, a shape that does not fit.
    """
    plan: dict[str, StoredWeight | StackedWeight] = {}
    stacks: dict[str, dict[tuple[int, int], str]] = {}  # our name -> (expert, part) -> tensor
    dtypes: dict[str, torch.dtype] = {}
    counts: dict[str, int] = {}
    for name, entry in files.entries():
        where = f"{files.path / files.file_of[name]}: tensor {name}"
        ours = table.ours(name)
        if all(our in table.tied and our not in shapes for our in ours) and ours:
            continue  # a tied head that the file repeats
        if not ours or any(our not in shapes for our in ours):
            raise ValueError(
                f"{where} is unexpected: the model that config.json describes has no such weight"
            )
        if found := table.slice_of(name):
            expert, piece = found
            experts, rows, columns = shapes[piece.ours]
            if expert >= experts or entry.shape != (rows // piece.count, columns):
                raise ValueError(
                    f"{where} has shape {list(entry.shape)}, but {piece.ours} takes {experts} experts of "
                    f"{[rows // piece.count, columns]}: {_OTHER_MODEL}"
                )
            stacks.setdefault(piece.ours, {})[expert, piece.index] = name
            dtypes[piece.ours], counts[piece.ours] = entry.dtype, piece.count
            continue
        for index, our in enumerate(ours):
            if not fits(entry.shape, len(ours), shapes[our]):
                part = f"1/{len(ours)} of " if len(ours) > 1 else ""
                raise ValueError(
                    f"{where} has shape {list(entry.shape)}, but {our} takes {part}it as "
                    f"{list(shapes[our])}: {_OTHER_MODEL}"
                )
            turned = lies_transposed(entry.shape, shapes[our])
            plan[our] = StoredWeight(files, name, index, len(ours), tuple(shapes[our]), entry.dtype, turned)
    for our, places in stacks.items():
        ordered = _in_order(files, table.theirs(our).name, places, shapes[our][0], counts[our])
        plan[our] = StackedWeight(files, ordered, tuple(shapes[our]), dtypes[our])
    if missing := [name for name in shapes if name not in plan and not is_adapter(name)]:
        names = ", ".join(table.theirs(name).name for name in missing[:3])
        raise ValueError(f"{files.path}: {len(missing)} tensors are missing, {names} among them")
    return plan


def _in_order(
    files: CheckpointFolder, theirs: str, names: Mapping[tuple[int, int], str], experts: int, count: int
) -> tuple[tuple[str, ...], ...]:
    """The tensors of a stack, `count` for each of `experts`; a ValueError where some are missing."""
    absent = {(e, i) for e in range(experts) for i in range(count)} - names.keys()
    if absent:
        raise ValueError(
            f"{files.path}: {len(absent)} tensors of {theirs} are missing, of expert {min(absent)[0]} first"
        )
    return tuple(tuple(names[e, i] for i in range(count)) for e in range(experts))


class Weights(Mapping[str, Tensor]):
    """Some parameters as they are given, all others from the files, where they may be more exact.

    Args:
        given: our names to tensors.
        stored: where all lie, see `plan_weights`.
    """

    def __init__(
        self, given: Mapping[str, Tensor], stored: Mapping[str, StoredWeight | StackedWeight]
    ) -> None:
        self._given, self._stored = given, stored
        self._names = list(dict.fromkeys([*stored, *given]))

    def __getitem__(self, name: str) -> Tensor:
        return self._given[name] if name in self._given else self._stored[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._stored or name in self._given
