"""A HF checkpoint folder on disk: config.json, safetensors in one file or several, tokenizer and other files.

Reading maps the files into memory; nothing is ever unpickled. A folder is written under a hidden name next to
the target and is renamed when it is complete.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from torchtune_qwenvl.checkpoints.shards import Entry, Shard, read_shard
from torchtune_qwenvl.json_files import CONFIG, read_json
from torchtune_qwenvl.transforms.processor_settings import image_statistics

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

# Other forms of the weights: a saved folder must not carry the old ones along.
WEIGHT_SUFFIXES = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".gguf",
    ".safetensors.index.json",
    ".bin.index.json",
)


class CheckpointFolder:
    """A folder's config and tensors, read only. Use it as a context manager: it keeps mapped files open.

    Args:
        path: the folder.
        wanted: whether a tensor of this name will be read; shards without any such tensor may be absent, and
            the folder then shows no other tensors.

    Raises:
        ValueError: it is no checkpoint folder, config.json is broken, there are only pickled weights, or a
            shard is missing or cut off.
    """

    def __init__(self, path: str | Path, wanted: Callable[[str], bool] = lambda name: True) -> None:
        self.path, self._wanted = Path(path), wanted
        if not self.path.is_dir():
            raise ValueError(f"{path}: no such folder; a checkpoint is downloaded by `tune download <repo>`")
        if not (self.path / CONFIG).is_file():
            raise ValueError(
                f"{path}: not a checkpoint folder, {CONFIG} is missing (it holds {self._listing()})"
            )
        self.config: dict[str, Any] = read_json(self.path / CONFIG)
        self.shards: list[Shard] = [read_shard(self.path / name) for name in self._shard_names()]
        self.file_of = {name: shard.file for shard in self.shards for name in shard.entries}
        self._check_index()
        self._handles: dict[str, Any] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "CheckpointFolder":
        return self

    def __exit__(self, *exc: object) -> None:
        self._handles.clear()
        self._stack.close()

    def entries(self) -> Iterator[tuple[str, Entry]]:
        """(name, dtype and shape) of every wanted tensor, file by file in the order of their bytes."""
        for shard in self.shards:
            yield from ((name, entry) for name, entry in shard.entries.items() if self._wanted(name))

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows [start, stop) of a tensor along its first axis, backed by the mapped file: copy before
        writing."""
        file = self.file_of[name]
        if file not in self._handles:
            handle = safe_open(str(self.path / file), framework="pt")
            self._handles[file] = self._stack.enter_context(handle)
        if start == 0 and stop is None:
            return self._handles[file].get_tensor(name)
        return self._handles[file].get_slice(name)[start:stop]

    def sidecars(self) -> list[Path]:
        """Every file of the folder without weights: config, tokenizer, template, processor, licence."""
        files = (path for path in sorted(self.path.iterdir()) if path.is_file())
        return [path for path in files if not path.name.endswith(WEIGHT_SUFFIXES)]

    def image_statistics(self) -> dict[str, list[float]]:
        """`image_mean` and `image_std` per channel; empty if the folder has no file for images."""
        return image_statistics(self.path)

    def _shard_names(self) -> list[str]:
        if (self.path / INDEX).is_file():
            names = sorted({file for name, file in self._weight_map().items() if self._wanted(name)})
        elif (self.path / WEIGHTS).is_file():
            names = [WEIGHTS]
        elif any(self.path.glob("*.bin")):
            raise ValueError(
                f"{self.path}: holds pickled weights (.bin) only, which are never unpickled here; convert it "
                "once with transformers: "
                "AutoModelForImageTextToText.from_pretrained(folder).save_pretrained(new_folder)"
            )
        else:
            raise ValueError(
                f"{self.path}: neither {WEIGHTS} nor {INDEX} is there (it holds {self._listing()})"
            )
        for name in names:
            if Path(name).name != name:
                raise ValueError(f"{self.path / INDEX}: names a file outside the folder, {name!r}")
            if not (self.path / name).is_file():
                lost = [tensor for tensor, file in self._weight_map().items() if file == name]
                raise ValueError(
                    f"{self.path}: shard {name} is missing ({len(lost)} tensors, {lost[0]} among them); "
                    "download it again"
                )
        return names

    def _weight_map(self) -> dict[str, str]:
        index = read_json(self.path / INDEX)
        if not isinstance(index.get("weight_map"), dict):
            raise ValueError(f"{self.path / INDEX}: expected a `weight_map` of tensor names to file names")
        return index["weight_map"]

    def _check_index(self) -> None:
        if not (self.path / INDEX).is_file():
            return
        for tensor, file in self._weight_map().items():
            if self._wanted(tensor) and self.file_of.get(tensor) != file:
                raise ValueError(
                    f"{self.path / file}: lacks the tensor {tensor}, which {INDEX} says is there"
                )

    def _listing(self) -> str:
        names = sorted(path.name for path in self.path.iterdir())
        return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "nothing"


def check_disk_space(folder: Path, needed: int) -> None:
    """Raise a ValueError if the disk has fewer than `needed` bytes free; `folder` need not exist."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"{folder}: not enough disk, {needed / 1e9:.3f} GB are to be written and {free / 1e9:.3f} GB are "
            "free; nothing was written: make room or choose another output folder"
        )
