"""Weight names as data: which tensor of a checkpoint file is which parameter of ours, in both directions.

A family writes one `WeightTable`. Everything here works on a single name, so that a checkpoint is read,
written and renamed for PEFT one tensor at a time. In a pattern, `{i}` is a number and `{p}` is `weight` or
`bias`. A tuple on our side means that the file holds several of our parameters, joined along the first axis.
They may have different numbers of rows:

    "model.visual.blocks.{i}.attn.qkv.{p}": ("...attn.q_proj.{p}", "...attn.k_proj.{p}", "...attn.v_proj.{p}")

Conversely, a file may hold each expert of one of our stacks as a tensor of its own: see `Slice`.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

# How the names of the vision encoder's weights begin, in transformers' module tree and in ours.
_THEIR_ENCODER, OUR_ENCODER = "model.visual.", "vision_encoder."
PLACEHOLDERS = {"{i}": r"(?P<i>\d+)", "{e}": r"(?P<e>\d+)", "{p}": r"(?P<p>weight|bias)"}


@dataclass(frozen=True)
class Piece:
    """Where one of our parameters is: part `index` of `count` of the tensor `name` on axis 0."""

    name: str
    index: int
    count: int


@dataclass(frozen=True)
class Slice:
    """A file's tensor as part of our stack `ours` [E, rows, columns]: for expert {e}, part `index` of `count`
    equal parts of its rows."""

    ours: str
    index: int = 0
    count: int = 1


@dataclass(frozen=True)
class WeightTable:
    """The names of one model family.

    Args:
        rows: module-tree name in transformers -> our name, or a tuple of ours (see above).
        prefixes: prefix in a file -> prefix in transformers' module tree, for every layout that is read
            or written; the first that matches is used.
        tied: our parameter that a tied model lacks -> the one it shares; a file may still repeat it.
        slices: module-tree name with {e} -> the slice of ours that files may hold instead of a row's tensor.
        carried: how the names of tensors begin that a model may lack: then they are copied from folder to
            folder as they are.
        peft_parameters: linears that PEFT must get as `target_parameters`, because it mistakes modules of
            that name for something else; by the last part of their name in transformers' module tree.
    """

    rows: Mapping[str, str | tuple[str, ...]]
    prefixes: Mapping[str, str]
    tied: Mapping[str, str] = field(default_factory=dict)
    slices: Mapping[str, Slice] = field(default_factory=dict)
    carried: tuple[str, ...] = ()
    peft_parameters: Collection[str] = ()

    def module_name(self, file_name: str) -> str:
        """The name that transformers' module tree, and so PEFT, has for `file_name`."""
        for prefix, canonical in self.prefixes.items():
            if file_name.startswith(prefix):
                return canonical + file_name.removeprefix(prefix)
        return file_name

    def ours(self, file_name: str) -> tuple[str, ...]:
        """The parameters of ours that the tensor `file_name` holds, in order along axis 0, or ()."""
        name = self.module_name(file_name)
        for pattern, targets in self._forward:
            if match := pattern.fullmatch(name):
                return tuple(target.format(**match.groupdict()) for target in targets)
        found = self.slice_of(file_name)
        return (found[1].ours,) if found else ()

    def carries(self, file_name: str) -> bool:
        """Whether the tensor `file_name` is copied as it is if the model lacks it."""
        return self.module_name(file_name).startswith(self.carried) if self.carried else False

    def slice_of(self, file_name: str) -> tuple[int, Slice] | None:
        """(expert, slice of our parameter) if the tensor `file_name` is one, else None."""
        name = self.module_name(file_name)
        for pattern, piece in self._slices:
            if match := pattern.fullmatch(name):
                return int(match["e"]), replace(piece, ours=piece.ours.format(**match.groupdict()))
        return None

    def theirs(self, our_name: str) -> Piece:
        """Where transformers' module tree keeps our parameter; a ValueError if no row has it."""
        for pattern, name, index, count in self._backward:
            if match := pattern.fullmatch(our_name):
                return Piece(name.format(**match.groupdict()), index, count)
        raise ValueError(f"{our_name}: no row of the weight table gives this parameter a name in the files")

    def of_encoder(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Parameters of transformers' vision encoder alone -> ours, both named from the encoder on.

        Args:
            state: its state dict, as `model.visual.state_dict()` gives it, or with `visual.` or
                `model.visual.` in front of the names. Names of no vision weight are kept as they are.
        """
        found: dict[str, torch.Tensor] = {}
        for name, tensor in state.items():
            bare = name.removeprefix("model.").removeprefix("visual.")
            ours = self.ours(f"{_THEIR_ENCODER}{bare}") or (f"{OUR_ENCODER}{name}",)
            for our, part in zip(ours, tensor.chunk(len(ours)) if len(ours) > 1 else [tensor], strict=True):
                # A convolution's kernel is our matrix; everything else has one or two axes anyway.
                found[our.removeprefix(OUR_ENCODER)] = part.flatten(1) if part.ndim > 2 else part
        return found

    @cached_property
    def _forward(self) -> list[tuple[re.Pattern[str], tuple[str, ...]]]:
        return [(_compile(name), _as_tuple(targets)) for name, targets in self.rows.items()]

    @cached_property
    def _slices(self) -> list[tuple[re.Pattern[str], Slice]]:
        return [(_compile(name), piece) for name, piece in self.slices.items()]

    @cached_property
    def _backward(self) -> list[tuple[re.Pattern[str], str, int, int]]:
        return [
            (_compile(target), name, index, len(_as_tuple(targets)))
            for name, targets in self.rows.items()
            for index, target in enumerate(_as_tuple(targets))
        ]


def fits(stored: tuple[int, ...], wanted: Sequence[tuple[int, ...]]) -> bool:
    """Whether a stored tensor can become these parameters: as many rows together, as many values in each.

    A convolution kernel [d, c, t, p, p] is our matrix [d, c*t*p*p]. Only shapes with more than two axes are
    reshaped, never a matrix. A stack of matrices may be stored transposed, see `lies_transposed`.
    """
    if len(wanted) == 1 and lies_transposed(stored, wanted[0]):
        return True
    if not stored or not all(wanted) or sum(shape[0] for shape in wanted) != stored[0]:
        return False
    flat = (torch.Size(stored[1:]).numel(),) if len(stored) > 2 else stored[1:]
    return all(tuple(shape[1:]) in (tuple(stored[1:]), tuple(flat)) for shape in wanted)


def split_rows(tensor: torch.Tensor, names: Sequence[str], rows: Mapping[str, int]) -> Sequence[torch.Tensor]:
    """The parts of a tensor that holds several of our parameters; of a single one the tensor as it is.

    Args:
        tensor: the whole.
        names: of our parameters, in order.
        rows: length of the first axis of each.
    """
    return [tensor] if len(names) == 1 else tensor.split([rows[name] for name in names])


def lies_transposed(stored: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether a stack of matrices [e, a, b] is stored as [e, b, a]; transformers, too, decides by shape."""
    stored, wanted = tuple(stored), tuple(wanted)
    return len(stored) == len(wanted) == 3 and stored != wanted and stored == (wanted[0], *wanted[:0:-1])


def as_stored(tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Our parameter in the shape of the stored tensor; `fits` must be true for the two."""
    return tensor.transpose(1, 2) if lies_transposed(shape, tuple(tensor.shape)) else tensor.reshape(shape)


def _as_tuple(targets: str | tuple[str, ...]) -> tuple[str, ...]:
    return (targets,) if isinstance(targets, str) else targets


def _compile(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"(\{\w\})", pattern)
    return re.compile("".join(PLACEHOLDERS.get(part) or re.escape(part) for part in parts))
