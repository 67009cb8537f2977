"""A batch between collate and the model: where things are in it, and its way to the device.

Positions are flat: token j of row i in rows of s tokens has the position i * s + j.

b rows, s tokens per row, k labelled positions, v visual tokens, d documents.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torchtune.data import CROSS_ENTROPY_IGNORE_IDX

from torchtune_qwenvl.modules.attention import Segments

# Needed on the host. As lists, since FSDP moves every tensor that a model gets to the device.
ON_HOST = ("grid_thw", "document_lengths")


@dataclass(frozen=True)
class BatchLayout:
    """What collate knows about a batch, so that the model does not have to look it up on the device.

    In the batch it is the plain dict `batch["layout"]` (see `as_dict`), because torchtune's recipes move
    tensors and dicts of tensors only. The model computes what is missing, and then waits for the device.

    Attributes:
        labelled: int64 [k], flat positions whose next token is labelled. Only these meet the head.
        lengths: int64 [b], tokens of each row without padding.
        visual: int64 [v], flat positions of the placeholders of visual tokens, ascending.
        document_lengths: int64 [d], or a list: tokens of each document, in order. Given only if the rows
            consist of documents that must not see each other; without it a row is one document.
        weights: fp32 [b, s], the weight of each token in the loss, in its place like its label; None: all 1.
        boundaries: int32 [d + 1], where the documents begin and end, for attention on the device.
    """

    labelled: Tensor | None = None
    lengths: Tensor | None = None
    visual: Tensor | None = None
    document_lengths: Tensor | Sequence[int] | None = None
    weights: Tensor | None = None
    boundaries: Tensor | None = None

    @classmethod
    def from_dict(cls, entries: Mapping[str, Any] | None) -> BatchLayout:
        """The layout of `batch["layout"]`; None is an empty one.

        Raises:
            ValueError: an entry that is none of the attributes.
        """
        known = [field.name for field in fields(cls)]
        if unknown := [name for name in entries or {} if name not in known]:
            raise ValueError(f"layout: expected entries among {', '.join(known)}, got {unknown[0]!r}")
        return cls(**(entries or {}))

    def as_dict(self) -> dict[str, Any]:
        """The entries that are not None."""
        entries = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: entry for name, entry in entries.items() if entry is not None}

    def segments(self, tokens: Tensor) -> Segments:
        """The documents of `tokens` [b, s], for attention.

        Raises:
            ValueError: the documents do not add up to the tokens.
        """
        b, s = tokens.shape
        if self.document_lengths is None:
            return Segments.rows(b, s, tokens.device)
        given = self.document_lengths
        lengths = given.tolist() if isinstance(given, Tensor) else list(given)
        if sum(lengths) != tokens.numel():
            raise ValueError(
                f"layout['document_lengths'] add up to {sum(lengths)}, tokens are {tokens.numel()}: both "
                "must come from the same collate, and a batch with documents has no padding"
            )
        return Segments.of(lengths, tokens.device, self.boundaries)

    def weights_of(self, labelled: Tensor) -> Tensor | None:
        """The weights [k] of the labels after the positions `labelled` [k]; None: all 1."""
        return None if self.weights is None else self.weights.flatten().index_select(0, labelled + 1)

    def real_tokens(self, s: int) -> Tensor | None:
        """Bool [b * s], false for padding; None if the lengths are unknown."""
        if self.lengths is None:
            return None
        return (torch.arange(s, device=self.lengths.device) < self.lengths[:, None]).flatten()


def labelled_positions(labels: Tensor, ignore_idx: int = CROSS_ENTROPY_IGNORE_IDX) -> Tensor:
    """Flat positions whose next token in the row is labelled.

    Args:
        labels: int64 [b, s], unshifted.
        ignore_idx: the label that is not trained on.

    Returns:
        int64 [k], ascending. For the labels ``[[-100, 5, 6, -100]]`` it is ``[0, 1]``: position 0 predicts 5,
        position 1 predicts 6.
    """
    next_is_labelled = torch.zeros_like(labels, dtype=torch.bool)
    next_is_labelled[:, :-1] = labels[:, 1:] != ignore_idx
    return next_is_labelled.flatten().nonzero().squeeze(1)


def placeholder_positions(tokens: Tensor, placeholders: Collection[int]) -> Tensor:
    """Flat positions, int64 [v], of the tokens that are one of `placeholders`."""
    flat = tokens.flatten()
    found = torch.zeros_like(flat, dtype=torch.bool)
    for placeholder in placeholders:
        found |= flat == placeholder
    return found.nonzero().squeeze(1)


def on_device(inputs: Mapping[str, Any], device: torch.device | str) -> dict[str, Any]:
    """The model's arguments, copied to the device without waiting; grids and document lengths as lists.

    Args:
        inputs: what collate returns.
        device: where the model is.
    """

    def moved(name: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: moved(key, entry) for key, entry in value.items()}
        if not isinstance(value, Tensor):
            return value
        return value.tolist() if name in ON_HOST else value.to(device, non_blocking=True)

    return {name: moved(name, value) for name, value in inputs.items()}


def map_tensors(tree: Any, function: Callable[[Tensor], Any]) -> Any:
    """A tree of dicts and lists with `function` applied to its tensors; everything else stays."""
    if isinstance(tree, Mapping):
        return {key: map_tensors(value, function) for key, value in tree.items()}
    if isinstance(tree, list):
        return [map_tensors(value, function) for value in tree]
    return function(tree) if isinstance(tree, Tensor) else tree
