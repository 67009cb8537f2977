"""Weight names as data: which tensor of a checkpoint file is which parameter of ours, in both directions.

A family writes one `WeightTable`; everything here works on a single name, so that a checkpoint is read,
written and turned into PEFT's names one tensor at a time. In a pattern `{i}` stands for a number and
`{p}` for `weight` or `bias`. A tuple on our side means that the file holds several of our parameters
joined along the first axis:

    "model.visual.blocks.{i}.attn.qkv.{p}": ("...attn.q_proj.{p}", "...attn.k_proj.{p}", "...attn.v_proj.{p}")

The other way round, a file may hold each expert of one of our stacks for itself: see `Slice`.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch

# How the names of the vision encoder's weights begin, in transformers' module tree and in ours.
_THEIR_ENCODER, OUR_ENCODER = "model.visual.", "vision_encoder."
PLACEHOLDERS = {"{i}": r"(?P<i>\d+)", "{e}": r"(?P<e>\d+)", "{p}": r"(?P<p>weight|bias)"}


@dataclass(frozen=True)
class Piece:
    """Where one of our parameters lies: part `index` of `count` equal parts of the tensor `name` along
    axis 0."""

    name: str
    index: int
    count: int


@dataclass(frozen=True)
class Slice:
    """What a file's tensor is of our stack `ours` [E, rows, columns]: of expert {e}, part `index` of `count`
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
            or written; the first that fits counts.
        tied: our parameter that a tied model lacks -> the one it shares; a file may still repeat it.
        slices: module-tree name with {e} -> the slice of ours that files may hold instead of a row's tensor.
        peft_parameters: linears, by the last part of their name in transformers' module tree, that PEFT must
            be told as parameters since it takes modules of that name for something else.
    """

    rows: Mapping[str, str | tuple[str, ...]]
    prefixes: Mapping[str, str]
    tied: Mapping[str, str] = field(default_factory=dict)
    slices: Mapping[str, Slice] = field(default_factory=dict)
    peft_parameters: Collection[str] = ()

    def module_name(self, file_name: str) -> str:
        """`file_name` as transformers' module tree (and so PEFT) spells it."""
        for prefix, canonical in self.prefixes.items():
            if file_name.startswith(prefix):
                return canonical + file_name.removeprefix(prefix)
        return file_name

    def ours(self, file_name: str) -> tuple[str, ...]:
        """Our parameters that the tensor `file_name` holds, in their order along axis 0; empty if unknown."""
        name = self.module_name(file_name)
        for pattern, targets in self._forward:
            if match := pattern.fullmatch(name):
                return tuple(target.format(**match.groupdict()) for target in targets)
        found = self.slice_of(file_name)
        return (found[1].ours,) if found else ()

    def slice_of(self, file_name: str) -> tuple[int, Slice] | None:
        """(expert, slice of our parameter) that the tensor `file_name` is; None for every other tensor."""
        name = self.module_name(file_name)
        for pattern, piece in self._slices:
            if match := pattern.fullmatch(name):
                return int(match["e"]), replace(piece, ours=piece.ours.format(**match.groupdict()))
        return None

    def theirs(self, our_name: str) -> Piece:
        """Where transformers' module tree keeps our parameter; a ValueError for a name that no row makes."""
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


def fits(stored: tuple[int, ...], pieces: int, wanted: tuple[int, ...]) -> bool:
    """Whether a part of a stored tensor can become a parameter: the same rows, and the same values in each.

    A convolution kernel [d, c, t, p, p] is our matrix [d, c*t*p*p]; a matrix is never reshaped, only a
    longer shape. A stack of matrices may lie the other way round, see `lies_transposed`.
    """
    if not stored or stored[0] % pieces:
        return False
    part = (stored[0] // pieces, *stored[1:])
    flattened = len(stored) > 2 and (part[0], torch.Size(part[1:]).numel()) == tuple(wanted)
    return part == tuple(wanted) or flattened or lies_transposed(stored, wanted)


def lies_transposed(stored: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether a stack of matrices [e, a, b] is stored as [e, b, a]; transformers, too, tells it by shape."""
    stored, wanted = tuple(stored), tuple(wanted)
    return len(stored) == len(wanted) == 3 and stored != wanted and stored == (wanted[0], *wanted[:0:-1])


def as_stored(tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Our parameter in the shape of the stored tensor; `fits` is true of the two."""
    return tensor.transpose(1, 2) if lies_transposed(shape, tuple(tensor.shape)) else tensor.reshape(shape)


def _as_tuple(targets: str | tuple[str, ...]) -> tuple[str, ...]:
    return (targets,) if isinstance(targets, str) else targets


def _compile(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"(\{\w\})", pattern)
    return re.compile("".join(PLACEHOLDERS.get(part) or re.escape(part) for part in parts))
