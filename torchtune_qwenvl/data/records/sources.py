"""Opens the `source` of a dataset: files, folders and globs on this machine, or what `datasets` loads."""

import glob
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from omegaconf import OmegaConf

from torchtune_qwenvl.data.records.json_records import JsonRecords
from torchtune_qwenvl.data.records.load_arguments import check_load_arguments, check_unused
from torchtune_qwenvl.data.records.records import FolderMetadata, JoinedRecords, Records, SlicedRecords
from torchtune_qwenvl.data.records.table_records import ArrowRecords

SUFFIXES = (".json", ".jsonl", ".parquet")
# Names of `datasets` builders whose local files are read here.
FILE_BUILDERS = ("json", "parquet")


def open_source(
    source: Any,
    *,
    split: str = "train",
    data_files: Any = None,
    **load_dataset_kwargs: Any,
) -> Records:
    """Open a source. Records are read one by one, when they are needed.

    Args:
        source: a ``.json`` (array), ``.jsonl`` or ``.parquet`` file, a folder of them, a glob, a list of
            these, a folder written by ``datasets.save_to_disk``, a ``datasets.Dataset``, or anything else
            that ``datasets.load_dataset`` takes ("json" and "parquet" with local ``data_files`` too).
        split: of the dataset. Local files are the split "train". Slices such as "train[:10%]" work for both.
        data_files: as for ``datasets.load_dataset``.
        **load_dataset_kwargs: passed on to ``datasets.load_dataset``.

    Raises:
        ValueError: nothing found, an unknown kind of file, a dataset that streams, or an argument that nobody
            reads.
    """
    source, data_files = plain(source), plain(data_files)
    check_load_arguments(load_dataset_kwargs)
    if isinstance(source, datasets.Dataset):
        check_unused(load_dataset_kwargs, "a Dataset")
        return ArrowRecords(source, "the dataset")
    files = list_local_files(source, data_files, split)
    if files is None:
        return _load(source, split, data_files, load_dataset_kwargs)
    check_unused(load_dataset_kwargs, files[0])
    return _slice(_open_files(files, split.split("[")[0]), split)


def list_local_files(source: Any, data_files: Any, split: str) -> list[Path] | None:
    """The files of a source on this machine; None if `datasets` has to load it.

    Raises:
        ValueError: nothing found, an unknown kind of file, or a split that local files do not have.
    """
    name = split.split("[")[0]
    if isinstance(data_files, Mapping) and _is_local(source, data_files.values()):
        if name not in data_files:
            raise ValueError(f"split {split!r}: data_files has {', '.join(data_files)}")
        data_files = data_files[name]
    elif not (isinstance(source, list) or _is_local(source, _as_list(data_files))):
        return None
    elif name != "train" and not (isinstance(source, (str, Path)) and _is_saved_dataset(Path(source))):
        raise ValueError(
            f"split {split!r}: local files are the split train; name the file of the other split"
        )
    return _list_files(source, data_files)


def plain(value: Any) -> Any:
    """The value, with OmegaConf's containers (from YAML) as lists and dicts."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [] if value is None else [value]


def _is_local(source: Any, data_files: Iterable[Any]) -> bool:
    if str(source) in FILE_BUILDERS:
        names = [str(name) for entry in data_files for name in _as_list(entry)]
        return bool(names) and not any("://" in name for name in names)
    return Path(source).exists() or Path(source).suffix in SUFFIXES or glob.has_magic(str(source))


def _list_files(source: Any, data_files: Any) -> list[Path]:
    patterns = _as_list(source)
    if data_files is not None:
        folder = Path() if source in FILE_BUILDERS else Path(source)
        patterns = [folder / name for name in _as_list(data_files)]
    files = [file for pattern in patterns for file in _expand(Path(pattern))]
    for file in files:
        if file.is_file() and file.suffix not in SUFFIXES:
            raise ValueError(f"{file}: expected a file ending in {', '.join(SUFFIXES)}. {_other_ways(file)}")
    return files


def _other_ways(file: Path) -> str:
    """How a file that is not read here can be read; `datasets` reads tables."""
    more = {".csv": "", ".tsv": r""" 'dataset.sep="\t"'"""}.get(file.suffix.lower())
    if more is None:
        return "Convert it."
    return f"Convert it, or read it by `datasets`: dataset.source=csv dataset.data_files={file}{more}"


def _expand(path: Path) -> list[Path]:
    if path.is_dir() and not _is_saved_dataset(path):
        found = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    elif glob.has_magic(str(path)) and not path.exists():
        found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
    else:
        found = [path] if path.exists() else []
    if not found:
        raise ValueError(
            f"dataset source {path}: expected a file ending in {', '.join(SUFFIXES)}, a folder of them or a "
            f"glob, found nothing (the working directory is {Path.cwd()})"
        )
    return found


def _open_files(files: Sequence[Path], name: str) -> Records:
    sources = [_open_file(file, name) for file in files]
    return sources[0] if len(sources) == 1 else JoinedRecords(sources)


def _open_file(file: Path, name: str) -> Records:
    if file.is_dir():
        saved = datasets.load_from_disk(str(file))
        table = saved[name] if isinstance(saved, datasets.DatasetDict) else saved
        return ArrowRecords(table, str(file))
    if is_folder_metadata(file):
        return FolderMetadata(_open_table(file) if file.suffix == ".parquet" else JsonRecords(file))
    return _open_table(file) if file.suffix == ".parquet" else JsonRecords(file)


def is_folder_metadata(file: Path) -> bool:
    """Whether a file is what `datasets` takes for the list of a folder's images."""
    return file.name in ("metadata.jsonl", "metadata.parquet")


def _open_table(file: Path) -> Records:
    try:
        table = datasets.load_dataset("parquet", data_files=[str(file)], split="train")
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        raise ValueError(f"{file}: expected a parquet file, {error.__cause__ or error}") from error
    return ArrowRecords(table, str(file), file.parent)


def _is_saved_dataset(path: Path) -> bool:
    return any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))


def _load(source: Any, split: str, data_files: Any, kwargs: Mapping[str, Any]) -> Records:
    try:
        table = datasets.load_dataset(source, split=split, data_files=data_files, **kwargs)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"dataset source {source}: no file, folder or glob here, and datasets.load_dataset says: {error}"
        ) from error
    if not isinstance(table, datasets.Dataset):
        raise ValueError(
            f"{source}: expected one dataset with numbered rows, got {type(table).__name__}: name one split "
            "and leave streaming off"
        )
    return ArrowRecords(table, f"{source} ({split})")


def _slice(records: Records, split: str) -> Records:
    name = split.split("[")[0]
    if name == split:
        return records
    instructions = datasets.ReadInstruction.from_spec(split).to_absolute({name: len(records)})
    indices = [i for part in instructions for i in range(*slice(part.from_, part.to).indices(len(records)))]
    return SlicedRecords(records, indices)
