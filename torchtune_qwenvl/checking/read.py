"""A whole dataset read once, by workers, each sample examined; a bad one is a finding, not an end."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from torchtune_qwenvl.checking.facts import Facts
from torchtune_qwenvl.checking.kinds import kind_of, masked
from torchtune_qwenvl.data.dataset import SkippedSample

_AT_ONCE = 16  # samples per message of a worker


def read_facts(dataset: Dataset, num_workers: int = 0, progress: bool = False) -> list[Facts]:
    """The facts of every sample, in order.

    Args:
        dataset: map-style, with an `Examiner` in the place of its transform.
        num_workers: processes that read.
        progress: show a bar.
    """
    samples = _Examined(dataset)
    batches = DataLoader(
        samples,
        batch_size=_AT_ONCE,
        num_workers=num_workers,
        collate_fn=list,
        generator=torch.Generator(),
    )
    with tqdm(total=len(samples), desc="reading", unit=" samples", disable=not progress) as bar:
        return list(_flat(batches, bar))


def _flat(batches: DataLoader, bar: tqdm) -> Iterator[Facts]:
    bad = 0
    for batch in batches:
        bad += sum(bool(facts.kind) for facts in batch)
        bar.set_postfix(bad=bad, refresh=False)
        bar.update(len(batch))
        yield from batch


def place_of(dataset: Any, index: int) -> str:
    """File and number of a sample, as its dataset or the one that it wraps says."""
    while not hasattr(dataset, "where"):
        if not hasattr(dataset, "dataset"):
            return f"sample {index} (from 0)"
        dataset = dataset.dataset
    return dataset.where(index)


class _Examined(Dataset):
    """Facts instead of samples. Whatever goes wrong is told: one broken record must not hide the others."""

    def __init__(self, dataset: Any) -> None:
        # A mix repeats and leaves out samples: all that it draws from are read once.
        self.dataset = getattr(dataset, "members", dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Facts:
        where = place_of(self.dataset, index)
        try:
            sample = self.dataset[index]
        except Exception as error:
            reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            return Facts(index, where, kind=kind_of(error), reason=_without_place(reason, where))
        if isinstance(sample, SkippedSample):
            reason = _without_place(sample.reason, where)
            return Facts(index, where, kind=masked(reason), reason=reason)
        return replace(sample["facts"], index=index, where=where)


def _without_place(reason: str, where: str) -> str:
    return reason.removeprefix(f"{where}: ")
