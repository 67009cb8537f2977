"""A record of a conversation to a sample: parsed, its images and videos found, then the transform."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torchtune.data import CROSS_ENTROPY_IGNORE_IDX

from torchtune_qwenvl.data.records.media import MediaFinder
from torchtune_qwenvl.data.records.messages import MessageParser
from torchtune_qwenvl.transforms.chat.chat_format import MEDIA
from torchtune_qwenvl.transforms.errors import BadSample
from torchtune_qwenvl.transforms.size import SampleSize


class ChatReader:
    """A record with its images and videos to a sample; safe to call from workers.

    Args:
        parse: record -> messages and tools.
        find: what a record names, the file's folder, and image or video -> a path, bytes or image.
        transform: ``{"messages": [...]}``, with ``"tools": [...]`` where there are some -> sample.
    """

    def __init__(
        self,
        parse: MessageParser,
        find: MediaFinder,
        transform: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    ) -> None:
        self.parse, self.find, self.transform = parse, find, transform

    def sample(self, record: Any, folder: Path | None) -> dict[str, Any]:
        """The transform's sample with ``labels`` (its tokens, ignored where masked)."""
        sample = dict(self.transform(self._parsed(record, folder)))
        pairs = zip(sample["tokens"], sample["mask"], strict=True)
        sample["labels"] = [CROSS_ENTROPY_IGNORE_IDX if masked else token for token, masked in pairs]
        return sample

    def size(self, record: Any, folder: Path | None) -> SampleSize:
        """Tokens and patches of the sample; with our transforms nothing is decoded for it."""
        sample = self._parsed(record, folder)
        if hasattr(self.transform, "size"):
            return self.transform.size(sample)
        return SampleSize.of(self.transform(sample))

    def _parsed(self, record: Any, folder: Path | None) -> dict[str, Any]:
        if not isinstance(record, Mapping):
            raise BadSample(f"expected an object with the columns of a sample, got {type(record).__name__}")
        messages, tools = self.parse(record), self.parse.tools(record)
        for message in messages:
            for part in message.content:
                if part["type"] in MEDIA:
                    part["content"] = self.find(part["content"], folder, part["type"])
        return {"messages": messages, "tools": tools} if tools else {"messages": messages}
