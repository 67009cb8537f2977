"""How long samples are, before any image is decoded: what packing plans with.

n samples of the dataset.
"""

import logging
from bisect import bisect_right
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from torchtune_qwenvl.transforms.size import SampleSize

log = logging.getLogger(__name__)

_AT_ONCE = 64  # samples per message of a worker


def sample_size(dataset: Any, index: Any) -> SampleSize:
    """Tokens and patches of one sample, by its number (of a stream, by its item).

    Asks the dataset's own `size(index)` (ours counts images from their headers), through torch's
    ConcatDataset too. Where there is none the sample is read as a whole, images decoded.

    Returns:
        (0, 0) for a bad sample, or one that the length policy gives up: reading it in its turn will tell why.
    """
    try:
        if hasattr(dataset, "size"):
            return dataset.size(index)
        if isinstance(dataset, ConcatDataset):
            part = bisect_right(dataset.cumulative_sizes, index)
            before = dataset.cumulative_sizes[part - 1] if part else 0
            return sample_size(dataset.datasets[part], index - before)
        sample = dataset[index]
    except (ValueError, OSError):
        return SampleSize(0, 0)
    return SampleSize.of(sample) if isinstance(sample, Mapping) else SampleSize(0, 0)


def measure(dataset: Dataset, *, num_workers: int = 0, rank: int = 0, world_size: int = 1) -> Tensor:
    """Sizes of all samples, int64 [n, 2]: tokens, patches.

    Every rank measures its share, with its data workers, and all of them exchange the results; so all ranks
    must call, and torch.distributed must be there where `world_size` is more than 1.

    Args:
        dataset: map-style, see `sample_size`.
        num_workers: processes that measure.
        rank, world_size: of this process, and how many there are.
    """
    n = len(dataset)  # type: ignore[arg-type]
    mine = range(rank, n, world_size)
    log.info(f"measuring the lengths of {len(mine)} samples; images are counted from their headers")
    batches = DataLoader(
        _Sizes(dataset),
        batch_size=_AT_ONCE,
        sampler=mine,
        num_workers=num_workers,
        collate_fn=torch.tensor,
        generator=torch.Generator(),  # must not move the random numbers that training draws
    )
    measured = torch.cat([torch.empty(0, 2, dtype=torch.int64), *batches])
    if world_size == 1:
        return measured
    shares: list[Any] = [None] * world_size
    torch.distributed.all_gather_object(shares, measured)
    sizes = torch.empty(n, 2, dtype=torch.int64)
    for other, share in enumerate(shares):
        sizes[other::world_size] = share
    return sizes


class _Sizes(Dataset):
    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> SampleSize:
        return sample_size(self.dataset, index)
