"""The dataset of conversations: reads a record, finds its images and videos, applies the transform."""

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from datasets.fingerprint import Hasher

from torchtune_qwenvl.data.guarded import Guarded
from torchtune_qwenvl.data.records.boxes import BoxReader
from torchtune_qwenvl.data.records.chat_reader import ChatReader
from torchtune_qwenvl.data.records.media import MediaFinder
from torchtune_qwenvl.data.records.messages import MessageParser
from torchtune_qwenvl.data.records.records import Records
from torchtune_qwenvl.data.records.sources import open_source
from torchtune_qwenvl.data.records.urls import MAX_BYTES, UrlPolicy
from torchtune_qwenvl.data.samples import Samples
from torchtune_qwenvl.data.streams.dataset import ChatItems, StreamedDataset
from torchtune_qwenvl.data.streams.sources import is_stream, open_stream
from torchtune_qwenvl.transforms.size import SampleSize


class VisionChatDataset(Samples):
    """Map-style dataset of conversations.

    Args:
        records: the records, by number.
        reader: turns a record into a sample.
    """

    def __init__(self, records: Records, reader: ChatReader) -> None:
        self.records, self.reader = records, reader

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int) -> dict[str, Any]:
        """The transform's sample with ``labels``."""
        return self.reader.sample(self.records[key], self.records.folder(key))

    def where(self, key: int) -> str:
        return self.records.where(key)

    def size(self, key: int) -> SampleSize:
        return self.reader.size(self.records[key], self.records.folder(key))

    def notes(self, key: int) -> tuple[str, ...]:
        return self.reader.notes(self.records[key], self.records.folder(key))

    def fingerprint(self) -> str:
        return Hasher.hash((self.records.fingerprint(), self.reader, version("torchtune_qwenvl")))


def vision_chat_dataset(
    tokenizer: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    *,
    source: Any,
    style: str = "auto",
    image_root: str | Path | None = None,
    allow_urls: bool = False,
    url_timeout: float = 10.0,
    url_max_bytes: int = MAX_BYTES,
    image_strings: Literal["path", "base64"] = "path",
    on_bad_sample: str = "raise",
    on_too_long: str = "raise",
    column_map: Mapping[str, str] | None = None,
    ignore_columns: Sequence[str] | None = None,
    new_system_prompt: str | None = None,
    box_unit: str | None = None,
    box_format: Literal["xyxy", "xywh"] | None = None,
    box_labels: Sequence[str] = (),
    box_question: str | None = None,
    train_on: Literal["all", "last"] = "all",
    split: str = "train",
    data_files: Any = None,
    streaming: bool = False,
    **load_dataset_kwargs: Any,
) -> Guarded | StreamedDataset:
    """Conversations with images and videos, from JSON, JSONL, parquet or any `datasets` source.

    .. code-block:: yaml

        dataset:
          _component_: torchtune_qwenvl.data.vision_chat_dataset
          source: my_data.json
          image_root: my_images

    In torchtune's stock recipes (with ``collate_fn: torchtune_qwenvl.data.collate``) leave ``on_bad_sample``
    at "raise". They cannot shrink a batch, so collate stops at a skipped sample, with its message.

    Args:
        tokenizer: the model's transform. Recipes pass it as the first argument.
        source: see :func:`~torchtune_qwenvl.data.records.sources.open_source`.
        style: one of ``data/records/styles/table.py``: "messages", "conversations", "qa", "query_response",
            "alpaca" or "prompt_completion"; "auto" chooses by each record's columns.
        image_root: folder that relative paths of images and videos start from and that no path may leave.
            Without it they start from the data file's folder.
        allow_urls: read images and videos from http and https URLs. Private addresses are always refused.
        url_timeout: seconds for one file.
        url_max_bytes: size limit of a download, and of a base64 image.
        image_strings: how a string in an image column or part is read: "path" (or URL), or "base64".
            ``data:`` URLs and ``{"type": "image", "base64": ...}`` are read either way.
        on_bad_sample: "raise" or "skip".
        on_too_long: "raise" or "skip" a sample that ``max_seq_len`` cannot take, not even without its last
            turns.
        column_map: maps our column names (the columns of the styles, system, tools, image, images, video,
            videos, objects) to the dataset's.
        ignore_columns: names of columns that are left out without a word, even if they look like images or
            parts of the conversation; ``*`` stands for any characters.
        new_system_prompt: replaces the records' system messages.
        box_unit: what the coordinates of ``objects`` count where a record does not say it: "pixels" of the
            image as displayed, "norm1" (0 .. 1) or "norm1000" (0 .. 1000). None: 0 .. 1 if all of a record's
            coordinates are in that range, else pixels.
        box_format: "xyxy" or "xywh" (COCO's) for records that do not say it. None: "xywh" where the labels
            are called category and no area contradicts, else "xyxy".
        box_labels: names of the labels that records give as numbers.
        box_question: asked about records that have objects but no question.
        train_on: "all" answers, or only the "last" one of each record.
        split: of the dataset; it may be a slice such as "train[:10%]".
        data_files: as for ``datasets.load_dataset``.
        streaming: read the source as a stream, without indexing, counting or downloading it first; see
            :func:`~torchtune_qwenvl.data.streams.sources.open_stream`. Iterables are always streamed.
        **load_dataset_kwargs: passed on to it.

    Returns:
        A map-style dataset, or a stream. Reading a bad sample raises :class:`BadSample`, whose message says
        file, number, what was expected and what to do; or returns a :class:`SkippedSample`.

    Raises:
        ValueError: a source, folder, style, column name or policy that does not exist.
    """
    if image_root is not None and not Path(image_root).is_dir():
        raise ValueError(f"image_root: expected a folder, found none at {Path(image_root).resolve()}")
    urls = UrlPolicy(timeout=url_timeout, max_bytes=url_max_bytes) if allow_urls else None
    find = MediaFinder(
        None if image_root is None else Path(image_root), urls, url_max_bytes, strings=image_strings
    )
    boxes = BoxReader(box_unit, box_format, tuple(box_labels), box_question)
    parse = MessageParser(style, column_map, new_system_prompt, train_on, ignore_columns, boxes)
    reader, policies = ChatReader(parse, find, tokenizer), (on_bad_sample, on_too_long)
    where: dict[str, Any] = {"split": split, "data_files": data_files, **load_dataset_kwargs}
    if streaming or is_stream(source):
        return StreamedDataset(open_stream(source, **where), Guarded(ChatItems(reader), *policies))
    return Guarded(VisionChatDataset(open_source(source, **where), reader), *policies)
