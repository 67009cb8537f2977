"""Opens the `source` of a streamed dataset: the same sources as elsewhere, and iterables."""

from collections.abc import Mapping
from typing import Any

import datasets
from omegaconf import OmegaConf
from torch.utils.data import IterableDataset
from torchtune.config import instantiate

from torchtune_qwenvl.data.records.load_arguments import check_load_arguments, check_unused
from torchtune_qwenvl.data.records.sources import is_folder_metadata, list_local_files, open_source, plain
from torchtune_qwenvl.data.streams.kinds import (
    AnyStream,
    LinesStream,
    NumberedStream,
    TableStream,
    common_folder,
    name_of,
)
from torchtune_qwenvl.data.streams.stream import Stream


def is_stream(source: Any) -> bool:
    """Whether a source can only be read as a stream: an iterable, or the component that makes one."""
    return isinstance(source, (datasets.IterableDataset, IterableDataset)) or (
        isinstance(source, Mapping) and "_component_" in source
    )


def open_stream(
    source: Any, *, split: str = "train", data_files: Any = None, **load_dataset_kwargs: Any
) -> Stream:
    """Open a source for streaming. Nothing is indexed, counted or downloaded as a whole.

    Args:
        source: what `open_source` takes, with these differences: ``.jsonl`` files are read line by line;
            parquet files and anything else that ``datasets.load_dataset`` takes are read with
            ``streaming=True``; a ``datasets.IterableDataset`` or ``torch.utils.data.IterableDataset`` of
            records, or the ``_component_`` that makes one, is read as it is. ``.json`` arrays are indexed
            all the same.
        split, data_files, **load_dataset_kwargs: as for `open_source`; no slices.

    Raises:
        ValueError: nothing found, a slice of a split, or an argument that nobody reads.
    """
    source, data_files = plain(source), plain(data_files)
    check_load_arguments(load_dataset_kwargs)
    if isinstance(source, dict):
        source = instantiate(OmegaConf.create(source))
    if is_stream(source):
        check_unused(load_dataset_kwargs, "a stream")
    if isinstance(source, datasets.IterableDataset):
        return TableStream(source, "the dataset")
    if isinstance(source, IterableDataset):
        return AnyStream(source, name_of(source))
    if "[" in split:
        raise ValueError(
            f"split {split!r}: a stream has no slices; leave streaming off, or name the split alone"
        )
    files = list_local_files(source, data_files, split)
    if files is None:
        table = _load(source, split=split, data_files=data_files, **load_dataset_kwargs)
        return TableStream(table, f"{source} ({split})")
    check_unused(load_dataset_kwargs, files[0])
    # A list of a folder's images is short, and indexed all the same.
    suffixes = {"" if is_folder_metadata(file) else file.suffix for file in files}
    if suffixes == {".jsonl"}:
        return LinesStream(files)
    if suffixes == {".parquet"}:
        table = _load("parquet", data_files=[str(file) for file in files], split="train")
        return TableStream(
            table, ", ".join(map(str, files[:2])) + ", …" * (len(files) > 2), common_folder(files)
        )
    records = open_source(source, split=split, data_files=data_files)
    return NumberedStream(records, len(records))


def _load(source: Any, **arguments: Any) -> datasets.IterableDataset:
    try:
        table = datasets.load_dataset(source, streaming=True, **arguments)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"dataset source {source}: no file, folder or glob here, and datasets.load_dataset says: {error}"
        ) from error
    if not isinstance(table, datasets.IterableDataset):
        raise ValueError(f"{source}: expected one dataset, got {type(table).__name__}: name one split")
    return table
