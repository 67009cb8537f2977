"""Read a whole dataset once with worker processes and examine each sample; errors do not stop it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from operator import getitem
from typing import Any

from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info
from tqdm import tqdm

from torchtune_qwenvl.checking.facts import Facts
from torchtune_qwenvl.checking.kinds import kind_of, masked
from torchtune_qwenvl.data.mixed_dataset import MixedDataset
from torchtune_qwenvl.data.samples import Samples, SkippedSample, as_samples
from torchtune_qwenvl.data.streams.dataset import as_streamed, is_streamed
from torchtune_qwenvl.data.streams.mixed import MixedStream
from torchtune_qwenvl.data.streams.stream import Share
from torchtune_qwenvl.data.workers import started, worker_options

_BATCH = 16  # samples that a worker sends at a time


def read_facts(dataset: Dataset, num_workers: int = 0, progress: bool = False) -> list[Facts]:
    """The facts of every sample, in order.

    Args:
        dataset: map-style or streamed, with an `Examiner` as its transform. A mix repeats and skips samples;
            here each of its datasets is read once.
        num_workers: number of processes that read.
        progress: show a progress bar.
    """
    streamed = is_streamed(dataset)
    samples = _Streamed(dataset) if streamed else _Numbered(_whole(dataset))
    batches = DataLoader(
        samples,
        batch_size=_BATCH,
        collate_fn=list,
        **worker_options(num_workers),
    )
    total = None if streamed else len(samples)  # type: ignore[arg-type]
    with tqdm(total=total, desc="reading", unit=" samples", disable=not progress) as bar:
        found = list(_flat(batches, bar))
    return sorted(found, key=lambda facts: facts.index) if streamed else found


def samples_of(dataset: Dataset, facts: Sequence[Facts], count: int) -> list[tuple[str, Any]]:
    """Up to `count` good samples with their places: spread over the dataset, or a stream's first ones."""
    if is_streamed(dataset):
        streamed = as_streamed(dataset)
        items = islice(streamed.open(Share(shuffle=False), 0), 2 * count)
        pairs = [(item.where, _try(partial(getitem, streamed, item))) for item in items]
        return [(where, sample) for where, sample in pairs if isinstance(sample, dict)][:count]
    whole = _whole(dataset)
    kept = [f for f in facts if not f.kind and f.kept_tokens]
    step = max(1.0, (len(kept) - 1) / max(1, count - 1))
    chosen = [kept[round(i * step)] for i in range(min(count, len(kept)))]
    return [(f.where, whole[f.index]) for f in chosen]


class _Numbered(Dataset):
    """The facts of a map-style dataset."""

    def __init__(self, dataset: Samples) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Facts:
        return _examine(partial(getitem, self.dataset, index), index, self.dataset.where(index))


class _Streamed(IterableDataset):
    """The facts of one pass over a stream, divided among the workers."""

    def __init__(self, dataset: Any) -> None:
        self.members = dataset.members if isinstance(dataset, MixedStream) else [dataset]

    def __iter__(self) -> Iterator[Facts]:
        worker = get_worker_info()
        rank, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        number = rank
        for member in map(as_streamed, self.members):
            cursor, where = member.open(Share(rank, workers, shuffle=False), 0), "its start"
            try:
                for item in cursor:
                    where = item.where
                    yield _examine(partial(getitem, member, item), number, where)
                    number += workers
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                kind = f"the stream broke off: {masked(reason)}"
                yield Facts(number, f"after {where}", kind=kind, reason=f"the stream broke off: {reason}")
                number += workers


def _whole(dataset: Dataset) -> Samples:
    return dataset.members if isinstance(dataset, MixedDataset) else as_samples(dataset)


def _examine(read: Callable[[], Any], index: int, where: str) -> Facts:
    """The facts of one sample. Every error becomes a fact: one broken record must not hide the others."""
    sample = _try(read)
    if isinstance(sample, Exception):
        plain = isinstance(sample, ValueError)
        reason = (str(sample) if plain else f"{type(sample).__name__}: {sample}").removeprefix(f"{where}: ")
        return Facts(index, where, kind=kind_of(sample), reason=reason)
    if isinstance(sample, SkippedSample):
        reason = sample.reason.removeprefix(f"{where}: ")
        return Facts(index, where, kind=masked(reason), reason=reason)
    facts: Facts = sample["facts"]
    notes = (*sample.get("notes", ()), *facts.notes)
    return replace(facts, index=index, where=where, notes=notes)


def _try(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except Exception as error:
        return error


def _flat(batches: DataLoader, bar: tqdm) -> Iterator[Facts]:
    bad = 0
    for batch in started(batches):
        bad += sum(bool(facts.kind) for facts in batch)
        bar.set_postfix(bad=bad, refresh=False)
        bar.update(len(batch))
        yield from batch
