"""In which order a run reads its data: chooses the sampler that the config asks for."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from torchtune_qwenvl.data.length_cache import measure_once
from torchtune_qwenvl.data.mixed_dataset import MixedDataset
from torchtune_qwenvl.data.order.packed_sampler import PackedSampler
from torchtune_qwenvl.data.order.plan import Planner
from torchtune_qwenvl.data.order.sampler import ResumableSampler
from torchtune_qwenvl.data.samples import Samples, as_samples
from torchtune_qwenvl.data.streams.dataset import Streamed, as_streamed, is_streamed
from torchtune_qwenvl.data.streams.mixed import MixedStream
from torchtune_qwenvl.data.streams.sampler import StreamSampler
from torchtune_qwenvl.data.streams.stream import Share
from torchtune_qwenvl.distributed import World


@dataclass(frozen=True)
class Order:
    """How a run reads its data.

    Attributes:
        seed: of the shuffling.
        pack_to: tokens per packed row; None does not pack.
        batch_tokens: instead of packing, batches of samples of similar length that take at most this many
            positions, padding included; None has batches of a fixed number of samples.
        shuffle_buffer: records of a stream that are shuffled together.
        num_workers: processes that measure samples before they are packed; with any, a stream is read in a
            separate process too.
        lengths_folder: keeps measured lengths; None measures in every run.
    """

    seed: int
    pack_to: int | None = None
    batch_tokens: int | None = None
    shuffle_buffer: int = 1000
    num_workers: int = 0
    lengths_folder: Path | None = None

    def rows(self, work: Callable[[int, int], float]) -> dict[str, Any]:
        """The arguments of a sampler that say how samples share rows."""
        padded = self.batch_tokens is not None
        return {"pack_to": self.batch_tokens if padded else self.pack_to, "padded": padded, "work": work}


def order_of(
    dataset: Dataset, order: Order, world: World, work: Callable[[int, int], float], shuffle: bool
) -> tuple[Samples, ResumableSampler | StreamSampler]:
    """The dataset to read, and a sampler of this rank's batches of its numbers or items.

    Args:
        dataset: as the config names it.
        order: how to read it.
        world: every rank must call.
        work: (tokens, patches) of a sample -> its work, in any unit.
        shuffle: in a new order each epoch.
    """
    if is_streamed(dataset):
        return _stream_order(as_streamed(dataset), order, world, work, shuffle)
    mixture = dataset.mixture if isinstance(dataset, MixedDataset) else None
    samples = dataset.members if isinstance(dataset, MixedDataset) else as_samples(dataset)
    place = {"rank": world.rank, "world_size": world.size}
    common: dict[str, Any] = {"seed": order.seed, "shuffle": shuffle, "mixture": mixture, **place}
    rows = order.rows(work)
    measure = partial(measure_once, samples, order.lengths_folder, num_workers=order.num_workers, **place)
    if rows["pack_to"] is None:

        @cache
        def planner() -> Planner:
            return Planner(measure()[1], work, seed=order.seed, shuffle=shuffle)

        def layouts(*arguments: Any) -> Tensor:
            return planner().done(*arguments)

        n = len(mixture or samples)  # type: ignore[arg-type]
        return samples, ResumableSampler(n, layouts=layouts, **common)
    samples, sizes = measure()
    return samples, PackedSampler(sizes, **rows, **common)


def _stream_order(
    stream: Streamed, order: Order, world: World, work: Callable[[int, int], float], shuffle: bool
) -> tuple[Streamed, StreamSampler]:
    share = Share(world.rank, world.size, order.seed, shuffle)
    in_process = order.num_workers > 0
    sampler = StreamSampler(
        stream, share, buffer=order.shuffle_buffer, in_process=in_process, **order.rows(work)
    )
    return stream, sampler


def member_names(dataset: Dataset) -> list[str]:
    """Names of the datasets that are mixed; empty without a mix."""
    if isinstance(dataset, MixedDataset):
        return dataset.members.names
    return dataset.names if isinstance(dataset, MixedStream) else []


def check_has_length(key: str, dataset: Dataset | None) -> None:
    """Raise a ValueError for a stream, since its number of batches per rank is unknown."""
    if is_streamed(dataset):
        raise ValueError(
            f"{key}: expected a dataset of known length, got a stream: leave streaming off, and take a part "
            "of a large one (split: validation[:500])"
        )
