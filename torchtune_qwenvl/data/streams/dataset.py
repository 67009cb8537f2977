"""Streams as datasets: a cursor gives records one after the other, and each becomes a sample elsewhere.

A stream cannot be asked for a number, so its keys are items: `dataset[item]` makes the sample of an item that
`dataset.open(...)` gave, in whatever process, and `dataset.size(item)` measures it. `as_streamed` wraps any
other dataset as one of these.
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import datasets
from torch.utils.data import Dataset, IterableDataset

from torchtune_qwenvl.data.guarded import Guarded
from torchtune_qwenvl.data.records.chat_reader import ChatReader
from torchtune_qwenvl.data.records.text import parse_json
from torchtune_qwenvl.data.samples import Item, Sample, Samples, sample_size
from torchtune_qwenvl.data.streams.kinds import AnyStream, NumberedStream, TableStream
from torchtune_qwenvl.data.streams.stream import Cursor, Share, State, Stream
from torchtune_qwenvl.transforms.errors import BadSample
from torchtune_qwenvl.transforms.size import SampleSize


class Streamed(Samples, IterableDataset):
    """A stream as a dataset: it opens as a cursor over items, and makes samples of the items."""

    @abstractmethod
    def open(self, share: Share, number: int, state: State | None = None) -> Cursor:
        """See `Stream`."""

    def __iter__(self) -> Iterator[Sample]:
        """The samples of one pass, in the stream's own order."""
        return (self[item] for item in self.open(Share(shuffle=False), 0))


class StreamedDataset(Streamed):
    """A stream, and how its items become samples.

    Args:
        stream: gives the items.
        samples: makes the samples, by item.
    """

    def __init__(self, stream: Stream, samples: Samples) -> None:
        self.stream, self.samples = stream, samples

    def open(self, share: Share, number: int, state: State | None = None) -> Cursor:
        return self.stream.open(share, number, state)

    def __getitem__(self, key: Item) -> Sample:
        return self.samples[key]

    def where(self, key: Item) -> str:
        return self.samples.where(key)

    def size(self, key: Item) -> SampleSize:
        return sample_size(self.samples, key)

    def notes(self, key: Item) -> tuple[str, ...]:
        return self.samples.notes(key)


class ChatItems(Samples):
    """Samples of items whose records are conversations."""

    def __init__(self, reader: ChatReader) -> None:
        self.reader = reader

    def __getitem__(self, key: Item) -> Mapping[str, Any]:
        return self.reader.sample(_parsed(key.record), key.folder)

    def where(self, key: Item) -> str:
        return key.where

    def size(self, key: Item) -> SampleSize:
        """Tokens and patches; nothing is decoded."""
        return self.reader.size(_parsed(key.record), key.folder)

    def notes(self, key: Item) -> tuple[str, ...]:
        return self.reader.notes(_parsed(key.record), key.folder)


class FinishedItems(Samples):
    """Items whose records are samples already."""

    def __getitem__(self, key: Item) -> Mapping[str, Any]:
        record = key.record
        if not isinstance(record, Mapping) or "tokens" not in record:
            is_mapping = isinstance(record, Mapping)
            came = f"the keys {sorted(record)}" if is_mapping else type(record).__name__
            raise BadSample(
                f"expected a finished sample with tokens, mask and input_pos, got {came}",
                fix="apply the transform, or pass the records to vision_chat_dataset as its source",
            )
        return record

    def where(self, key: Item) -> str:
        return key.where


class NumberedItems(Samples):
    """Items whose records are the numbers of a map-style dataset."""

    def __init__(self, dataset: Dataset) -> None:
        self.samples = Guarded(dataset)

    def __getitem__(self, key: Item) -> Sample:
        return self.samples[key.record]

    def where(self, key: Item) -> str:
        return self.samples.where(key.record)

    def size(self, key: Item) -> SampleSize:
        return self.samples.size(key.record)


def is_streamed(dataset: Any) -> bool:
    """Whether a dataset can only be read as a stream."""
    return isinstance(dataset, (IterableDataset, datasets.IterableDataset))


def as_streamed(dataset: Any) -> Streamed:
    """Any dataset as a stream of items: ours as it is; others' iterables give finished samples."""
    if isinstance(dataset, Streamed):
        return dataset
    name = type(dataset).__name__
    if isinstance(dataset, datasets.IterableDataset):
        return StreamedDataset(TableStream(dataset, name), FinishedItems())
    if isinstance(dataset, IterableDataset):
        return StreamedDataset(AnyStream(dataset, name), FinishedItems())
    return StreamedDataset(NumberedStream(None, len(dataset)), NumberedItems(dataset))


def in_order(dataset: Any, on_bad_sample: str, on_too_long: str) -> Iterator[Sample]:
    """The samples of a dataset or stream in their own order, read one by one."""
    if is_streamed(dataset):
        streamed = as_streamed(dataset)
        guarded = Guarded(streamed, on_bad_sample, on_too_long)
        return (guarded[item] for item in streamed.open(Share(shuffle=False), 0))
    guarded = Guarded(dataset, on_bad_sample, on_too_long)
    return (guarded[index] for index in range(len(guarded)))


def first_samples(dataset: Any, count: int, on_bad_sample: str, on_too_long: str) -> list[Sample]:
    """The first samples of a dataset or stream, in their own order."""
    return list(islice(in_order(dataset, on_bad_sample, on_too_long), count))


def _parsed(record: Any) -> Any:
    if isinstance(record, Exception):  # it could not be read
        raise record
    return parse_json(record) if isinstance(record, bytes) else record
