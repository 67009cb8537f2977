"""Keeps measured lengths in the run's folder, so that a resumed run begins at once.

A file's name holds a fingerprint of everything that determines lengths: the data files (path, size, time of
change), how records are read, and the transform with its limits. It does not cover the image files. Those are
checked when they are read: a sample that is not as long as it was measured stops the run, and the message
names the file to remove.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import Dataset

from torchtune_qwenvl.counted import counted
from torchtune_qwenvl.data.samples import Sample, Samples, as_samples
from torchtune_qwenvl.data.sizes import measure
from torchtune_qwenvl.transforms.size import SampleSize

log = logging.getLogger(__name__)


def measure_once(
    dataset: Dataset, folder: Path | None, *, num_workers: int = 0, rank: int = 0, world_size: int = 1
) -> tuple[Samples, Tensor]:
    """`measure`, or the result that an earlier call wrote to `folder`; all ranks must call.

    Args:
        dataset: map-style; one without a `fingerprint` (torchtune's, a user's) is measured each time.
        folder: of the files with lengths; only rank 0 uses it. None measures each time.
        num_workers, rank, world_size: see `measure`.

    Returns:
        The dataset, which checks lengths that come from a file, and sizes int64 [n, 2]: tokens, patches.
    """
    samples = as_samples(dataset)
    file = None
    if folder is not None and rank == 0 and (name := samples.fingerprint()) is not None:
        file = folder / f"lengths_{name}.safetensors"
    n = len(samples)  # type: ignore[arg-type]
    known: list[Any] = [(file, _read(file, n) if file is not None else None)]
    if world_size > 1:
        torch.distributed.broadcast_object_list(known, src=0)
    ((found, sizes),) = known
    if sizes is not None:
        log.info(f"lengths of {counted(len(sizes), 'sample')} as measured before: {found}")
        return AsMeasured(samples, sizes[:, 0].tolist(), str(found)), sizes
    sizes = measure(samples, num_workers=num_workers, rank=rank, world_size=world_size)
    if file is not None:
        _write(file, sizes)
    return samples, sizes


class AsMeasured(Samples):
    """A dataset whose lengths were measured by an earlier run, and are checked as samples are read.

    Args:
        samples: map-style.
        lengths: tokens of each sample; 0 for a bad one.
        file: that holds the lengths, for messages.
    """

    def __init__(self, samples: Samples, lengths: list[int], file: str) -> None:
        self.samples, self.lengths, self.file = samples, lengths, file

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, key: int) -> Sample:
        return self.samples[key]

    def where(self, key: int) -> str:
        return self.samples.where(key)

    def size(self, key: int) -> SampleSize:
        """The size now, which may differ from the measured one."""
        return self.samples.size(key)

    def fingerprint(self) -> str | None:
        return self.samples.fingerprint()

    def member(self, key: int) -> int:
        return self.samples.member(key)

    def check(self, key: int, sample: Mapping[str, Any]) -> str | None:
        """A message if the sample is not as long as it was measured."""
        if len(sample["tokens"]) == self.lengths[key]:
            return None
        return (
            f"{self.where(key)}: {len(sample['tokens'])} tokens, but {self.lengths[key]} when lengths "
            f"were measured: its images have changed since. Remove {self.file} to measure again"
        )


def _read(file: Path, n: int) -> Tensor | None:
    try:
        sizes = load_file(file)["sizes"]
    except (OSError, SafetensorError, KeyError):
        return None  # missing or broken: measuring again writes a new one
    return sizes if sizes.shape == (n, 2) else None


def _write(file: Path, sizes: Tensor) -> None:
    """Write the whole file or nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        save_file({"sizes": sizes}, part)
        os.replace(part, file)
    except OSError as error:
        part.unlink(missing_ok=True)
        log.warning(f"lengths are not kept, {file} cannot be written: {error}")
