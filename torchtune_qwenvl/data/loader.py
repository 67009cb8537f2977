"""Batches for one rank: workers decode and collate, the main process counts what was left out."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from torchtune_qwenvl.data.collate import collate as default_collate
from torchtune_qwenvl.data.dataset import BadRecord, Guarded, SkippedSample
from torchtune_qwenvl.data.sampler import ResumableSampler

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """One batch of one rank.

    Attributes:
        inputs: what collate returns, ``labels`` included. A batch without samples is one pad token without
            labels, so that every rank runs the same number of steps.
        samples: samples in it.
        tokens: tokens in it, padding not counted.
        skipped: the samples that were left out, each with its reason.
        dropped_turns: turns that the truncation policy cut from these samples.
    """

    inputs: dict[str, Any]
    samples: int
    tokens: int
    skipped: tuple[SkippedSample, ...] = ()
    dropped_turns: int = 0

    def pin_memory(self) -> "Batch":
        """Called by torch's DataLoader."""
        return replace(self, inputs=_map_tensors(self.inputs, Tensor.pin_memory))

    def to(self, device: torch.device | str) -> "Batch":
        """Copy to a device, without waiting for the copy where the memory is pinned."""
        return replace(self, inputs=_map_tensors(self.inputs, lambda t: t.to(device, non_blocking=True)))


class Loader:
    """Iterates over the batches of the sampler's epoch, from the sampler's position on.

    Attributes:
        skipped: every sample left out so far, ``{message: times}``; each message is logged once.
        dropped_turns: turns that the truncation policy cut so far.
        position: ``(epoch, samples_done)`` after the last batch handed out, for ``sampler.set_position``:
            workers run ahead, so the sampler itself does not know it.
    """

    def __init__(self, batches: DataLoader, sampler: ResumableSampler) -> None:
        self._batches, self.sampler = batches, sampler
        self.skipped: dict[str, int] = {}
        self.dropped_turns = 0
        self.position = (sampler.epoch, sampler.samples_done)

    def __len__(self) -> int:
        """Batches from the sampler's position to the end of its epoch."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        self.position = epoch, done = self.sampler.epoch, self.sampler.samples_done
        for batch in self._batches:
            if isinstance(batch, BadRecord):
                raise BadRecord(str(batch))
            done = self.sampler.after_step(done)
            self.position = (epoch, done)
            self._count(batch)
            yield batch

    def _count(self, batch: Batch) -> None:
        self.dropped_turns += batch.dropped_turns
        for skipped in batch.skipped:
            if skipped.reason not in self.skipped:
                log.warning(
                    f"skipped: {skipped.reason} ({len(self.skipped) + 1} skipped so far on this rank)"
                )
            self.skipped[skipped.reason] = self.skipped.get(skipped.reason, 0) + 1


def build_loader(
    dataset: Dataset,
    *,
    batch_size: int,
    sampler: ResumableSampler,
    collate: Callable[..., dict[str, Any]] = default_collate,
    padding_idx: int = 0,
    ignore_idx: int = -100,
    on_bad_sample: str = "raise",
    num_workers: int = 0,
    prefetch_factor: int | None = None,
    pin_memory: bool | None = None,
) -> Loader:
    """Put dataset, sampler and collate together.

    The same process count gives the same batches in the same order, whatever the number of workers. To
    resume, call ``sampler.set_position``: nothing that was trained on is read or decoded again.

    Args:
        dataset: map-style dataset of samples of one of our transforms: ours, torchtune's, or a concatenation.
        batch_size: samples (of a PackedSampler: rows) per rank and batch.
        sampler: which samples this rank reads.
        collate: samples, ``padding_idx`` and ``ignore_idx`` -> inputs.
        padding_idx: pad token id (``transform.pad_id``).
        ignore_idx: label that is not trained on.
        on_bad_sample: "raise" or "skip", see :class:`Guarded`.
        num_workers: processes that read, decode and collate; 0 does it in this one.
        prefetch_factor: batches that each worker prepares ahead; None is torch's default (2).
        pin_memory: page-locked batches; None means where there is a CUDA device.

    Returns:
        A :class:`Loader` of :class:`Batch`.
    """
    sampler.set_batch_size(batch_size)
    batches = DataLoader(
        _Reported(Guarded(dataset, on_bad_sample)),
        batch_sampler=sampler,
        collate_fn=partial(_make_batch, collate=collate, padding_idx=padding_idx, ignore_idx=ignore_idx),
        num_workers=num_workers,
        prefetch_factor=prefetch_factor,
        pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
        persistent_workers=num_workers > 0,
        # Its own: starting workers draws a seed, which must not move the random numbers that training draws.
        generator=torch.Generator(),
    )
    return Loader(batches, sampler)


class _Reported(Dataset):
    """Hands a bad sample's error out as a value, so that the main process raises it without a worker's
    traceback."""

    def __init__(self, dataset: Guarded) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> Mapping[str, Any] | SkippedSample | BadRecord:
        try:
            return self.dataset[index]
        except BadRecord as error:
            return BadRecord(str(error))


def _make_batch(
    samples: Sequence[Mapping[str, Any] | SkippedSample | BadRecord],
    collate: Callable[..., dict[str, Any]],
    padding_idx: int,
    ignore_idx: int,
) -> Batch | BadRecord:
    for sample in samples:
        if isinstance(sample, BadRecord):
            return sample
    kept = [sample for sample in samples if isinstance(sample, Mapping)]
    inputs = collate(kept or [_one_pad_token(padding_idx)], padding_idx=padding_idx, ignore_idx=ignore_idx)
    return Batch(
        inputs=inputs,
        samples=len(kept),
        tokens=sum(len(sample["tokens"]) for sample in kept),
        skipped=tuple(sample for sample in samples if isinstance(sample, SkippedSample)),
        dropped_turns=sum(sample.get("dropped_turns", 0) for sample in kept),
    )


def _one_pad_token(padding_idx: int) -> dict[str, Any]:
    return {
        "tokens": [padding_idx],
        "mask": [True],
        "input_pos": torch.zeros(1, 3, dtype=torch.int64),
    }


def _map_tensors(tree: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(tree, dict):
        return {key: _map_tensors(value, function) for key, value in tree.items()}
    return function(tree) if isinstance(tree, Tensor) else tree
