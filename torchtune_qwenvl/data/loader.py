"""Batches for one rank: workers read, decode and collate; the main process counts what was left out."""

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from torchtune_qwenvl.data.collate import collate as default_collate
from torchtune_qwenvl.data.notes import first_notes, new_notes
from torchtune_qwenvl.data.order.sampler import ResumableSampler
from torchtune_qwenvl.data.reported import Drawn, Reported
from torchtune_qwenvl.data.samples import Samples, SkippedSample, as_samples
from torchtune_qwenvl.data.streams.sampler import StreamSampler
from torchtune_qwenvl.data.workers import started, worker_options
from torchtune_qwenvl.modules.batch import map_tensors

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Batch:
    """One batch of one rank.

    Attributes:
        inputs: what collate returns, including ``labels``. If all samples were skipped, it is one pad token
            without labels, so that every rank runs the same number of steps.
        samples: number of samples.
        tokens: number of tokens, without padding.
        skipped: the samples that were left out, each with its reason.
        dropped_turns: number of turns that the truncation policy cut from these samples.
        drawn: number of samples taken from each dataset of a mix, by the number of the dataset.
        lost: how many of these were left out.
        places: file and number of each sample.
        notes: what is odd about records of the batch, each with the place of a sample.
    """

    inputs: dict[str, Any]
    samples: int
    tokens: int
    skipped: tuple[SkippedSample, ...] = ()
    dropped_turns: int = 0
    drawn: Mapping[int, int] = field(default_factory=dict)
    lost: Mapping[int, int] = field(default_factory=dict)
    places: tuple[str, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)

    def pin_memory(self) -> "Batch":
        """Called by torch's DataLoader."""
        return replace(self, inputs=map_tensors(self.inputs, Tensor.pin_memory))


class Loader:
    """Iterates over the batches of the sampler's epoch, from the sampler's position on.

    After the end of a stream, empty batches follow for as long as they are asked for, since other ranks may
    have more of it.

    Attributes:
        dataset: the samples, by the sampler's numbers or items.
        is_stream: whether the number of batches is unknown.
        skipped: every sample left out so far, ``{message: times}``; each message is logged once.
        dropped_turns: turns that the truncation policy cut so far.
    """

    def __init__(self, dataset: Samples, batches: DataLoader, order: "_Noted") -> None:
        self.dataset, self._batches, self._order = dataset, batches, order
        self.sampler = order.sampler
        self.is_stream = isinstance(order.sampler, StreamSampler)
        self.skipped: dict[str, int] = {}
        self.dropped_turns = 0
        self._known_notes: set[str] = set()
        self._state = self.sampler.state_dict()

    def __len__(self) -> int:
        """Batches from the sampler's position to the end of its epoch."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        for outcome in started(self._batches):
            self._state = self._order.after.popleft()
            batch = _raised(outcome)
            self._count(batch)
            yield batch
        while self.is_stream:
            self._state = self.sampler.state_dict()
            yield self._batches.collate_fn([])

    def notes_at_start(self) -> list[str]:
        """What is odd about records, or not read of them, as lines; later, only what is new is logged.

        A part of a map-style dataset is looked at; a stream is read only as it comes. Under "raise", bad
        records are a ValueError.
        """
        if self.is_stream:
            return []
        found = first_notes(cast(Reported, self._batches.dataset).guarded)
        found.check()
        self._known_notes.update(found.counts)
        return found.lines()

    def read(self, samples: Sequence[Any]) -> Batch:
        """Read these samples as one batch in this process, wherever the sampler is."""
        return _raised(self._batches.collate_fn([self._batches.dataset[sample] for sample in samples]))

    @property
    def more(self) -> bool:
        """Whether a stream has more for this rank. Other ranks may have more even if this one has not."""
        return not self._state.get("ended", False)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch. A stream continues where it stopped; after its end it begins again."""
        self.sampler.begin_epoch(epoch, self._state)
        self._state = self.sampler.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """The place after the last batch that was yielded."""
        return self._state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go to the place where `state_dict` was taken; nothing before it is read or decoded again."""
        self.sampler.load_state_dict(state)
        self._state = self.sampler.state_dict()

    def _count(self, batch: Batch) -> None:
        self.dropped_turns += batch.dropped_turns
        for line in new_notes(batch.notes, self._known_notes):
            log.warning(line)
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
    sampler: ResumableSampler | StreamSampler,
    collate: Callable[..., dict[str, Any]] = default_collate,
    padding_idx: int = 0,
    ignore_idx: int = -100,
    on_bad_sample: str = "raise",
    on_too_long: str = "raise",
    num_workers: int = 0,
    prefetch_factor: int | None = None,
    pin_memory: bool | None = None,
    filler: Mapping[str, Any] | None = None,
) -> Loader:
    """Put dataset, sampler and collate together.

    The batches and their order depend on the number of ranks, but not on the number of workers. To resume,
    call ``load_state_dict``: nothing that was trained on is read or decoded again.

    Args:
        dataset: map-style dataset of samples of one of our transforms: ours, torchtune's or a concatenation;
            or a `Streamed` dataset.
        batch_size: samples (of a PackedSampler: rows) per rank and batch.
        sampler: which samples this rank reads.
        collate: samples, ``padding_idx`` and ``ignore_idx`` -> inputs.
        padding_idx: pad token id (``transform.pad_id``).
        ignore_idx: label that is not trained on.
        on_bad_sample: "raise" or "skip", see :class:`~torchtune_qwenvl.data.Guarded`.
        on_too_long: the same for samples that are longer than ``max_seq_len``.
        num_workers: processes that read, decode and collate; with 0 this process does.
        prefetch_factor: batches that each worker prepares ahead; None is torch's default (2).
        pin_memory: put batches into page-locked memory; None does so if there is a CUDA device.
        filler: what a batch without samples is made of; None is one pad token without a label.

    Returns:
        A :class:`Loader` of :class:`Batch`.
    """
    sampler.set_batch_size(batch_size)
    order, samples = _Noted(sampler), as_samples(dataset)
    batches = DataLoader(
        Reported(samples, on_bad_sample, on_too_long),
        batch_sampler=order,
        collate_fn=partial(
            _make_batch,
            collate=partial(collate, padding_idx=padding_idx, ignore_idx=ignore_idx),
            filler=_one_pad_token(padding_idx) if filler is None else filler,
        ),
        prefetch_factor=prefetch_factor,
        pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
        persistent_workers=num_workers > 0,
        **worker_options(num_workers),
    )
    return Loader(samples, batches, order)


class _Noted:
    """A sampler's batches, and its place after each: workers read ahead of the batches that are yielded."""

    def __init__(self, sampler: ResumableSampler | StreamSampler) -> None:
        self.sampler = sampler
        self.after: deque[dict[str, Any]] = deque()

    def __iter__(self) -> Iterator[list[Any]]:
        self.after.clear()
        for batch in self.sampler:
            self.after.append(self.sampler.state_dict())
            yield batch

    def __len__(self) -> int:
        return len(self.sampler)


def _make_batch(
    drawn: Sequence[Drawn],
    collate: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]],
    filler: Mapping[str, Any],
) -> Batch | ValueError:
    outcomes = [one.outcome for one in drawn]
    for outcome in outcomes:
        if isinstance(outcome, ValueError):
            return outcome
    kept = [outcome for outcome in outcomes if isinstance(outcome, Mapping)]
    return Batch(
        inputs=collate(kept or [filler]),
        samples=len(kept),
        tokens=sum(len(sample.get("tokens", ())) for sample in kept),
        skipped=tuple(outcome for outcome in outcomes if isinstance(outcome, SkippedSample)),
        dropped_turns=sum(sample.get("dropped_turns", 0) for sample in kept),
        drawn=Counter(one.member for one in drawn),
        lost=Counter(one.member for one in drawn if isinstance(one.outcome, SkippedSample)),
        places=tuple(one.where for one in drawn if isinstance(one.outcome, Mapping)),
        notes={note: place for one in reversed(drawn) for note, place in one.notes.items()},
    )


def _raised(outcome: Batch | ValueError) -> Batch:
    if isinstance(outcome, ValueError):
        raise outcome.with_traceback(None) from None
    return outcome


def _one_pad_token(padding_idx: int) -> dict[str, Any]:
    return {
        "tokens": [padding_idx],
        "mask": [True],
        "input_pos": torch.zeros(1, 3, dtype=torch.int64),
    }
