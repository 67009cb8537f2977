"""Where each of our parameters is in a checkpoint folder, found by the files' headers alone.

plan = plan_weights(files, table, shapes)
plan["decoder.norm.scale"].read()         one tensor from the mapped file
plan["decoder.norm.scale"].read(0, 16)    some rows of it: what one rank of a sharded run keeps
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from torchtune_qwenvl.checkpoints.embedding_rows import GrownWeight, grows
from torchtune_qwenvl.checkpoints.folder import CheckpointFolder
from torchtune_qwenvl.checkpoints.shards import Entry
from torchtune_qwenvl.models.weight_table import Slice, WeightTable, fits, lies_transposed
from torchtune_qwenvl.modules.adapters.lora import is_adapter

_OTHER_MODEL = (
    "the model is of another size than the folder, or config.json and weights do not belong together"
)

_NO_PREDICTION = (
    ": the folder has no multi-token prediction layers, transformers leaves them out when it saves. Set "
    "mtp_trainable to false, or begin with the published folder"
)


@dataclass(frozen=True)
class StoredWeight:
    """Where one of our parameters is: in the tensor `name` of `files`, from row `first` on.

    With `transposed`, the matrices of a stack are stored as their transposes.
    """

    files: CheckpointFolder
    name: str
    first: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    transposed: bool = False

    def read(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows [start, stop) in our shape and the file's dtype. They are backed by the mapped file: copy them
        before you write to them."""
        rows = self.shape[0]
        stop = rows if stop is None else min(stop, rows)
        everything = self.files.rows(self.name) == rows and (start, stop) == (0, rows)
        data = (
            self.files.read(self.name)
            if everything
            else self.files.read(self.name, self.first + start, self.first + stop)
        )
        if self.transposed:
            return data.transpose(1, 2)
        return data.reshape(max(0, stop - start), *self.shape[1:])


@dataclass(frozen=True)
class StackedWeight:
    """One of our stacks [E, rows, columns] whose experts are separate tensors, `names[expert][part]`."""

    files: CheckpointFolder
    names: tuple[tuple[str, ...], ...]
    shape: tuple[int, ...]
    dtype: torch.dtype

    def read(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Experts [start, stop) in the files' dtype."""
        experts = [torch.cat([self.files.read(name) for name in parts]) for parts in self.names[start:stop]]
        return torch.stack(experts) if experts else torch.empty(0, *self.shape[1:], dtype=self.dtype)


Stored = StoredWeight | StackedWeight | GrownWeight


def plan_weights(
    files: CheckpointFolder, table: WeightTable, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Stored]:
    """Find every parameter in the files without reading any.

    Args:
        files: the open folder.
        table: the family's names.
        shapes: names and shapes of our parameters; adapters, which files do not hold, are skipped.

    Returns:
        Our name -> where the parameter is, in the order of the files. Embeddings and head may have more rows
        than in the files, see `embedding_rows`.

    Raises:
        ValueError: a tensor has no parameter, a parameter has no tensor, or a shape does not fit.
    """
    plan: dict[str, Stored] = {}
    stacks: dict[str, dict[tuple[int, int], tuple[str, Entry]]] = {}  # our name -> (expert, part)
    for name, entry in files.entries():
        ours = table.ours(name)
        if ours and all(our in table.tied and our not in shapes for our in ours):
            continue  # a tied head that the file repeats
        if (not ours or any(our not in shapes for our in ours)) and table.carries(name):
            continue
        where = f"{files.path / files.file_of[name]}: tensor {name}"
        if not ours or any(our not in shapes for our in ours):
            raise ValueError(
                f"{where} is unexpected: the model that config.json describes has no such weight"
            )
        if of_expert := table.slice_of(name):
            expert, piece = of_expert
            _check_slice(entry, expert, piece, shapes[piece.ours], where)
            stacks.setdefault(piece.ours, {})[expert, piece.index] = name, entry
        else:
            plan |= _parts(files, name, entry, ours, shapes, where)
    plan |= {our: _stack(files, table, our, shapes[our], found) for our, found in stacks.items()}
    if missing := [name for name in shapes if name not in plan and not is_adapter(name)]:
        names = [table.theirs(name).name for name in missing]
        advice = "" if not all(map(table.carries, names)) else _NO_PREDICTION
        raise ValueError(
            f"{files.path}: {len(names)} tensors are missing, {', '.join(names[:3])} among them{advice}"
        )
    return plan


def _parts(
    files: CheckpointFolder,
    name: str,
    entry: Entry,
    ours: tuple[str, ...],
    shapes: Mapping[str, tuple[int, ...]],
    where: str,
) -> Mapping[str, Stored]:
    """Each of our parameters that one tensor holds."""
    wanted = [shapes[our] for our in ours]
    if len(ours) == 1 and grows(ours[0], entry.shape, wanted[0]):
        return {ours[0]: GrownWeight(files, name, entry.shape[0], tuple(wanted[0]), entry.dtype)}
    if not fits(entry.shape, wanted):
        takes = " and ".join(f"{our} {list(shape)}" for our, shape in zip(ours, wanted, strict=True))
        raise ValueError(
            f"{where} has shape {list(entry.shape)}, but the model takes {takes} of it: {_OTHER_MODEL}"
        )
    firsts = accumulate((shape[0] for shape in wanted[:-1]), initial=0)
    return {
        our: StoredWeight(
            files,
            name,
            first,
            tuple(shape),
            entry.dtype,
            transposed=lies_transposed(entry.shape, shape),
        )
        for our, first, shape in zip(ours, firsts, wanted, strict=True)
    }


def _check_slice(entry: Entry, expert: int, piece: Slice, shape: tuple[int, ...], where: str) -> None:
    experts, rows, columns = shape
    if expert >= experts or entry.shape != (rows // piece.count, columns):
        raise ValueError(
            f"{where} has shape {list(entry.shape)}, but {piece.ours} takes {experts} experts of "
            f"{[rows // piece.count, columns]}: {_OTHER_MODEL}"
        )


def _stack(
    files: CheckpointFolder,
    table: WeightTable,
    ours: str,
    shape: tuple[int, ...],
    found: Mapping[tuple[int, int], tuple[str, Entry]],
) -> StackedWeight:
    """Our stack, whose tensors were found by expert and part; a ValueError if some are missing."""
    a_name, entry = next(iter(found.values()))
    _, piece = table.slice_of(a_name) or (0, Slice(ours))
    absent = {(e, i) for e in range(shape[0]) for i in range(piece.count)} - found.keys()
    if absent:
        raise ValueError(
            f"{files.path}: {len(absent)} tensors of {table.theirs(ours).name} are missing, of expert "
            f"{min(absent)[0]} first"
        )
    ordered = tuple(tuple(found[e, i][0] for i in range(piece.count)) for e in range(shape[0]))
    return StackedWeight(files, ordered, tuple(shape), entry.dtype)


class Weights(Mapping[str, Tensor]):
    """Some parameters as they are given, all others from the files, which may be more exact.

    Args:
        given: our names to tensors.
        stored: the result of `plan_weights`, with all names.
    """

    def __init__(self, given: Mapping[str, Tensor], stored: Mapping[str, Stored]) -> None:
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
