"""Turns the record of a conversation into a sample: parse it, find its images and videos, transform it."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

from torchtune.data import CROSS_ENTROPY_IGNORE_IDX

from torchtune_qwenvl.data.records.media import MediaFinder
from torchtune_qwenvl.data.records.messages import Conversation, MessageParser
from torchtune_qwenvl.transforms.chat.chat_format import MEDIA
from torchtune_qwenvl.transforms.errors import BadSample
from torchtune_qwenvl.transforms.size import SampleSize


class Transform(Protocol):
    """What turns ``{"messages": [...]}``, with ``"tools": [...]`` if there are any, into a sample."""

    def __call__(self, sample: Mapping[str, Any]) -> Mapping[str, Any]: ...

    def size(self, sample: Mapping[str, Any]) -> SampleSize:
        """Tokens and patches of the sample, without decoding its images."""


class _SizedByReading:
    """A user's transform that has no `size`: the sample is made in full to measure it."""

    def __init__(self, transform: Callable[[Mapping[str, Any]], Mapping[str, Any]]) -> None:
        self.transform = transform

    def __call__(self, sample: Mapping[str, Any]) -> Mapping[str, Any]:
        return self.transform(sample)

    def size(self, sample: Mapping[str, Any]) -> SampleSize:
        return SampleSize.of(self.transform(sample))


class ChatReader:
    """Turns records into samples; safe to call from data workers.

    Args:
        parse: record -> messages and tools.
        find: (what a record names, the file's folder, "image" or "video") -> a path, bytes or image.
        transform: a `Transform`, or any callable that makes samples.
    """

    def __init__(
        self,
        parse: MessageParser,
        find: MediaFinder,
        transform: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    ) -> None:
        self.parse, self.find = parse, find
        sized = transform if hasattr(transform, "size") else _SizedByReading(transform)
        self.transform = cast(Transform, sized)

    def sample(self, record: Any, folder: Path | None) -> dict[str, Any]:
        """The transform's sample with ``labels`` (its tokens, ignored where masked).

        It has ``notes``, a tuple of texts, if something about the record is odd or not read.
        """
        parsed, notes = self._parsed(record, folder)
        sample = dict(self.transform(parsed))
        pairs = zip(sample["tokens"], sample["mask"], strict=True)
        sample["labels"] = [CROSS_ENTROPY_IGNORE_IDX if masked else token for token, masked in pairs]
        if notes:
            sample["notes"] = notes
        return sample

    def size(self, record: Any, folder: Path | None) -> SampleSize:
        """Tokens and patches of the sample; our transforms decode nothing for it."""
        return self.transform.size(self._parsed(record, folder)[0])

    def notes(self, record: Any, folder: Path | None) -> tuple[str, ...]:
        """What is odd about a record or not read of it; no image is looked for."""
        return self._read(record, folder).notes

    def _parsed(self, record: Any, folder: Path | None) -> tuple[dict[str, Any], tuple[str, ...]]:
        said = self._read(record, folder)
        for message in said.messages:
            for part in message.content:
                if part["type"] in MEDIA:
                    part["content"] = self.find(part["content"], folder, part["type"])
        parsed = (
            {"messages": said.messages, "tools": said.tools} if said.tools else {"messages": said.messages}
        )
        return parsed, said.notes

    def _read(self, record: Any, folder: Path | None) -> Conversation:
        if not isinstance(record, Mapping):
            packed = "write packed records one by one; pack_to packs" if isinstance(record, list) else None
            came = type(record).__name__
            raise BadSample(f"expected an object with the columns of a sample, got {came}", fix=packed)
        return self.parse.read(record, partial(self.find.is_file, folder=folder))
