"""Streams as datasets: records come one after the other, samples are made of them elsewhere.

A stream cannot be asked for a number, so the record itself takes its place: `dataset[item]` makes the sample
of an item that `dataset.open(...)` gave, in whatever process, and `dataset.size(item)` measures it.
"""

import json
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Protocol

import datasets
from torch.utils.data import Dataset, IterableDataset

from torchtune_qwenvl.data.dataset import Guarded, SkippedSample
from torchtune_qwenvl.data.records.chat_reader import ChatReader
from torchtune_qwenvl.data.sizes import sample_size
from torchtune_qwenvl.data.streams.kinds import AnyStream, NumberedStream, TableStream
from torchtune_qwenvl.data.streams.stream import Cursor, Item, Share, State, Stream
from torchtune_qwenvl.transforms.errors import BadSample
from torchtune_qwenvl.transforms.size import SampleSize


class Streamed(Protocol):
    """A stream whose items it makes samples of."""

    def open(self, share: Share, number: int, state: State | None = None) -> Cursor:
        """See `Stream`."""

    def __getitem__(self, item: Item) -> Mapping[str, Any] | SkippedSample: ...

    def size(self, item: Item) -> SampleSize: ...


class StreamedDataset(IterableDataset):
    """A stream, and how its items become samples.

    Args:
        stream: gives the items.
        samples: makes the samples, by item instead of number.
    """

    def __init__(self, stream: Stream, samples: Dataset) -> None:
        self.stream, self.samples = stream, samples

    def open(self, share: Share, number: int, state: State | None = None) -> Cursor:
        """See `Stream`."""
        return self.stream.open(share, number, state)

    def __getitem__(self, item: Item) -> Mapping[str, Any] | SkippedSample:
        return self.samples[item]

    def __iter__(self) -> Iterator[Mapping[str, Any] | SkippedSample]:
        """All samples in the stream's own order."""
        return (self[item] for item in self.open(Share(shuffle=False), 0))

    def where(self, item: Item) -> str:
        """File and line of an item."""
        samples: Any = self.samples
        return samples.where(item)

    def size(self, item: Item) -> SampleSize:
        """Tokens and patches of the item's sample."""
        return sample_size(self.samples, item)


class ChatItems(Dataset):
    """Samples of records of conversations."""

    def __init__(self, reader: ChatReader) -> None:
        self.reader = reader

    def __getitem__(self, item: Item) -> Mapping[str, Any]:
        return self.reader.sample(_parsed(item.record), item.folder)

    def where(self, item: Item) -> str:
        """File and line of an item."""
        return item.where

    def size(self, item: Item) -> SampleSize:
        """Tokens and patches of the item's sample; nothing is decoded."""
        return self.reader.size(_parsed(item.record), item.folder)


class FinishedItems(Dataset):
    """Records that are samples already."""

    def __getitem__(self, item: Item) -> Mapping[str, Any]:
        if not isinstance(item.record, Mapping) or "tokens" not in item.record:
            kind = (
                f"the keys {sorted(item.record)}"
                if isinstance(item.record, Mapping)
                else type(item.record).__name__
            )
            raise BadSample(
                f"expected a finished sample with tokens, mask and input_pos, got {kind}",
                fix="apply the transform, or hand records to vision_chat_dataset as its source",
            )
        return item.record

    def where(self, item: Item) -> str:
        """Stream and number of an item."""
        return item.where


class NumberedItems(Dataset):
    """Samples of a map-style dataset, whose numbers are the records."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = Guarded(dataset)

    def __getitem__(self, item: Item) -> Mapping[str, Any] | SkippedSample:
        return self.dataset[item.record]

    def where(self, item: Item) -> str:
        """File and number of an item."""
        return self.dataset.where(item.record)

    def size(self, item: Item) -> SampleSize:
        """Tokens and patches of the item's sample."""
        return self.dataset.size(item.record)


def is_streamed(dataset: Any) -> bool:
    """Whether a dataset has to be read as a stream."""
    return isinstance(dataset, (IterableDataset, datasets.IterableDataset))


def as_streamed(dataset: Any) -> Any:
    """Any dataset as a stream of items: ours as it is, others' iterables give finished samples."""
    if hasattr(dataset, "open") and hasattr(dataset, "size"):
        return dataset
    name = type(dataset).__name__
    if isinstance(dataset, datasets.IterableDataset):
        return StreamedDataset(TableStream(dataset, name), FinishedItems())
    if isinstance(dataset, IterableDataset):
        return StreamedDataset(AnyStream(dataset, name), FinishedItems())
    return StreamedDataset(NumberedStream(None, len(dataset)), NumberedItems(dataset))


def first_samples(dataset: Any, count: int, on_bad_sample: str) -> list[Mapping[str, Any] | SkippedSample]:
    """The first samples of a dataset or stream, in their own order."""
    if not is_streamed(dataset):
        guarded = Guarded(dataset, on_bad_sample)
        return [guarded[i] for i in range(min(count, len(guarded)))]
    streamed = as_streamed(dataset)
    guarded = Guarded(streamed, on_bad_sample)
    return [guarded[item] for item in islice(streamed.open(Share(shuffle=False), 0), count)]


def _parsed(record: Any) -> Any:
    if not isinstance(record, bytes):
        return record
    try:
        return json.loads(record)
    except ValueError as error:
        raise BadSample(f"not valid JSON: {error}", fix="correct or remove the line") from error
