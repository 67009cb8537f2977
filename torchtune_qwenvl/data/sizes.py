"""Measures how long all samples of a dataset are, before any image is decoded. Packing needs it.

Axis: n samples of the dataset.
"""

import logging
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from torchtune_qwenvl.counted import counted
from torchtune_qwenvl.data.samples import Samples, as_samples, sample_size
from torchtune_qwenvl.data.workers import started, worker_options
from torchtune_qwenvl.transforms.size import SampleSize

log = logging.getLogger(__name__)

_AT_ONCE = 64  # samples per message of a worker


def measure(dataset: Dataset, *, num_workers: int = 0, rank: int = 0, world_size: int = 1) -> Tensor:
    """Sizes of all samples, int64 [n, 2]: tokens, patches; (0, 0) for a bad one.

    Our datasets count images from their headers; of others, each sample is read and decoded. Every rank
    measures its share with its data workers, then all ranks exchange the results. So all ranks must call,
    with torch.distributed initialised if `world_size` is more than 1.

    Args:
        dataset: map-style.
        num_workers: processes that measure.
        rank: of this process.
        world_size: number of processes.
    """
    samples = as_samples(dataset)
    n = len(samples)  # type: ignore[arg-type]
    mine = range(rank, n, world_size)
    log.info(
        f"measuring the lengths of {counted(len(mine), 'sample')}; images are counted from their headers"
    )
    batches = DataLoader(
        _Sizes(samples),
        batch_size=_AT_ONCE,
        sampler=mine,
        collate_fn=torch.tensor,
        **worker_options(num_workers),
    )
    measured = torch.cat([torch.empty(0, 2, dtype=torch.int64), *started(batches)])
    if world_size == 1:
        return measured
    shares: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(shares, measured)
    sizes = torch.empty(n, 2, dtype=torch.int64)
    for other, share in enumerate(shares):
        sizes[other::world_size] = share
    return sizes


class _Sizes(Dataset):
    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> SampleSize:
        return sample_size(self.samples, index)
