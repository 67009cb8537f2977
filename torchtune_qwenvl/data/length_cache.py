"""Lengths that an earlier start measured: kept in the run's folder, so that a resumed run begins at once.

A file is found by a fingerprint of all that lengths follow from: data files (path, size, time of change), how
records are read, and the transform with its limits. What the fingerprint does not cover, the image files,
is checked at use: a sample that is not as long as it was measured stops the run, with the file to remove.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from datasets.fingerprint import Hasher
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

from torchtune_qwenvl.data.dataset import SkippedSample
from torchtune_qwenvl.data.sizes import measure
from torchtune_qwenvl.transforms.size import SampleSize

log = logging.getLogger(__name__)


def fingerprint(dataset: Any) -> str | None:
    """Of all that the lengths of a dataset's samples follow from; None where that is not known."""
    if isinstance(dataset, ConcatDataset):
        parts = [fingerprint(part) for part in dataset.datasets]
        return None if None in parts else Hasher.hash(parts)
    return dataset.fingerprint() if hasattr(dataset, "fingerprint") else None


def measure_once(
    dataset: Dataset, folder: Path | None, *, num_workers: int = 0, rank: int = 0, world_size: int = 1
) -> tuple[Dataset, Tensor]:
    """`measure`, or what an earlier call measured and wrote to `folder`; all ranks must call.

    Args:
        dataset: map-style; one without a `fingerprint` (torchtune's, a user's) is measured each time.
        folder: rank 0's counts; None measures each time.
        num_workers, rank, world_size: of `measure`.

    Returns:
        The dataset, which checks what was not measured now, and sizes int64 [n, 2]: tokens, patches.
    """
    file = None
    if folder is not None and rank == 0 and (name := fingerprint(dataset)) is not None:
        file = folder / f"lengths_{name}.safetensors"
    n = len(dataset)  # type: ignore[arg-type]
    known: list[Any] = [(file, _read(file, n) if file is not None else None)]
    if world_size > 1:
        torch.distributed.broadcast_object_list(known, src=0)
    ((found, sizes),) = known
    if sizes is not None:
        log.info(f"lengths of {len(sizes)} samples as measured before: {found}")
        return AsMeasured(dataset, sizes[:, 0].tolist(), str(found)), sizes
    sizes = measure(dataset, num_workers=num_workers, rank=rank, world_size=world_size)
    if file is not None:
        _write(file, sizes)
    return dataset, sizes


class AsMeasured(Dataset):
    """A dataset whose lengths were measured by an earlier run.

    Args:
        dataset: map-style.
        lengths: tokens of each sample; 0 for a bad one.
        file: where they stand.
    """

    def __init__(self, dataset: Dataset, lengths: list[int], file: str) -> None:
        self.dataset, self.lengths, self.file = dataset, lengths, file
        self.member = getattr(dataset, "member", lambda index: 0)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Mapping[str, Any] | SkippedSample:
        return self.dataset[index]

    def where(self, index: int) -> str:
        """Where a sample comes from."""
        dataset: Any = self.dataset
        return (
            dataset.where(index) if hasattr(dataset, "where") else f"sample {index} (from 0) of the dataset"
        )

    def size(self, index: int) -> SampleSize:
        """As it is now."""
        dataset: Any = self.dataset
        return dataset.size(index)

    def check(self, index: int, sample: Mapping[str, Any]) -> str | None:
        """What is wrong with a sample that is not as long as it was measured."""
        if len(sample["tokens"]) == self.lengths[index]:
            return None
        return (
            f"{self.where(index)}: {len(sample['tokens'])} tokens, but {self.lengths[index]} when lengths "
            f"were measured: its images have changed since. Remove {self.file} to measure again"
        )


def _read(file: Path, n: int) -> Tensor | None:
    try:
        sizes = load_file(file)["sizes"]
    except (OSError, SafetensorError, KeyError):
        return None  # not there, or no such file: measuring again makes a new one
    return sizes if sizes.shape == (n, 2) else None


def _write(file: Path, sizes: Tensor) -> None:
    """As a whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        save_file({"sizes": sizes}, part)
        os.replace(part, file)
    except OSError as error:
        part.unlink(missing_ok=True)
        log.warning(f"lengths are not kept, {file} cannot be written: {error}")
