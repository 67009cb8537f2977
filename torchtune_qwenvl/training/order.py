"""In which order a run reads its data: what the config asks for, as a dataset and its sampler."""

from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig
from torch.utils.data import Dataset

from torchtune_qwenvl.data.length_cache import measure_once
from torchtune_qwenvl.data.mixed_dataset import MixedDataset
from torchtune_qwenvl.data.order.packed_sampler import PackedSampler
from torchtune_qwenvl.data.order.sampler import ResumableSampler
from torchtune_qwenvl.data.streams.dataset import as_streamed, is_streamed
from torchtune_qwenvl.data.streams.mixed import MixedStream
from torchtune_qwenvl.data.streams.sampler import StreamSampler
from torchtune_qwenvl.data.streams.stream import Share
from torchtune_qwenvl.distributed import World


def order_of(
    dataset: Dataset, cfg: DictConfig, world: World, work: Callable[[int, int], float], shuffle: bool
) -> tuple[Dataset, ResumableSampler | StreamSampler]:
    """The dataset to read by number, or by item, and those of this rank's batches.

    Args:
        dataset: as the config names it.
        cfg: its seed, pack_to, batch_tokens, shuffle_buffer, num_workers, keep_lengths and output_dir count.
        world: every rank must call.
        work: (tokens, patches) of a sample -> its work, in any unit.
        shuffle: anew for each epoch.
    """
    place = {"rank": world.rank, "world_size": world.size}
    padded = cfg.batch_tokens is not None
    budget = {"pack_to": cfg.batch_tokens if padded else cfg.pack_to, "padded": padded, "work": work}
    if is_streamed(dataset):
        stream = as_streamed(dataset)
        share = Share(**place, seed=cfg.seed, shuffle=shuffle)
        in_process = cfg.num_workers > 0
        return stream, StreamSampler(
            stream, share, buffer=cfg.shuffle_buffer, in_process=in_process, **budget
        )
    mixture = dataset.mixture if isinstance(dataset, MixedDataset) else None
    if isinstance(dataset, MixedDataset):
        dataset = dataset.members
    order = {"seed": cfg.seed, "shuffle": shuffle, "mixture": mixture, **place}
    if budget["pack_to"] is None:
        return dataset, ResumableSampler(len(mixture or dataset), **order)  # type: ignore[arg-type]
    folder = Path(cfg.output_dir) / "lengths" if cfg.keep_lengths else None
    dataset, sizes = measure_once(dataset, folder, num_workers=cfg.num_workers, **place)
    return dataset, PackedSampler(sizes, **budget, **order)


def member_names(dataset: Dataset) -> list[str]:
    """Names of the datasets that are mixed; none where one is read alone."""
    if isinstance(dataset, MixedDataset):
        return dataset.members.names
    return dataset.names if isinstance(dataset, MixedStream) else []


def check_has_length(key: str, dataset: Dataset | None) -> None:
    """Raise a ValueError for a stream, of which nobody knows how many batches each rank has."""
    if is_streamed(dataset):
        raise ValueError(
            f"{key}: expected a dataset of known length, got a stream: leave streaming off, and take a part "
            "of a large one (split: validation[:500])"
        )
