"""A HF checkpoint folder on disk: config.json, safetensors in one file or several, tokenizer and other files.

Reading maps the files into memory; nothing is ever unpickled. A folder is written under a hidden name next to
the target and is renamed when it is complete.
"""

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from torchtune_qwenvl.checkpoints.reading.index import check_shards, read_weight_map
from torchtune_qwenvl.checkpoints.reading.quantised import (
    SCALE,
    Scaled,
    find_scaled,
    is_quantised,
    plain_config,
    refusal,
)
from torchtune_qwenvl.checkpoints.reading.sidecars import find_sidecars
from torchtune_qwenvl.checkpoints.reading.tied_head import differ, says_tied, untied_config
from torchtune_qwenvl.checkpoints.shards import Entry, Shard, read_shard
from torchtune_qwenvl.json_files import CONFIG, hint_at_checkpoint, read_json
from torchtune_qwenvl.transforms.processor_settings import image_statistics

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Ends of their names in every family and layout.
HEAD, EMBEDDINGS = "lm_head.weight", "embed_tokens.weight"
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype for dtype in (torch.float32, torch.float16, torch.bfloat16)
}


class CheckpointFolder:
    """A folder's config and tensors, read only. Use it as a context manager: it keeps mapped files open.

    Block-scaled FP8 weights look like weights of config.json's dtype and are dequantised as they are read.

    Args:
        path: the folder.
        wanted: whether a tensor of this name will be read; shards without any such tensor may be absent, and
            the folder then shows no other tensors.

    Attributes:
        config: config.json, but with what is true of the tensors: an untied head if it differs from the
            embeddings, no quantisation.
        own_head: whether config.json ties a head that the files hold with other values.
        scaled: FP8 weights by name.

    Raises:
        ValueError: it is no checkpoint folder, config.json is broken, there are only pickled weights, they
            are quantised, or a shard is missing or cut off.
    """

    def __init__(self, path: str | Path, wanted: Callable[[str], bool] = lambda name: True) -> None:
        self.path, self._wanted = Path(path), wanted
        self._handles: dict[str, Any] = {}
        self._stack = ExitStack()
        if not self.path.is_dir():
            raise ValueError(f"{path}: no such folder; a checkpoint is downloaded by `tune download <repo>`")
        if not (self.path / CONFIG).is_file():
            raise ValueError(
                f"{path}: not a checkpoint folder, {CONFIG} is missing (it holds {self._listing()})"
                f"{hint_at_checkpoint(self.path)}"
            )
        self.config: dict[str, Any] = read_json(self.path / CONFIG)
        self.shards: list[Shard] = self._read_shards()
        self.file_of = {name: shard.file for shard in self.shards for name in shard.entries}
        self._check_index()
        self.scaled = self._find_scaled()
        self.own_head = self._has_own_head()
        if is_quantised(self.config):
            self.config = plain_config(self.config)
        if self.own_head:
            self.config = untied_config(self.config)

    def __enter__(self) -> "CheckpointFolder":
        return self

    def __exit__(self, *exc: object) -> None:
        self._handles.clear()
        self._stack.close()

    @property
    def rewritten(self) -> bool:
        """Whether config.json and the index are not as in the folder: `config` and `shards` are."""
        return self.own_head or bool(self.scaled)

    def entries(self) -> Iterator[tuple[str, Entry]]:
        """(name, dtype and shape) of every wanted tensor, file by file in the order of their bytes."""
        for shard in self.shards:
            yield from ((name, entry) for name, entry in shard.entries.items() if self._wanted(name))

    def rows(self, name: str) -> int:
        """Length of a tensor's first axis."""
        shard = next(shard for shard in self.shards if shard.file == self.file_of[name])
        return shard.entries[name].shape[0]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Rows [start, stop) of a tensor along its first axis, backed by the mapped file: copy before
        writing."""
        data = self._read(name, start, stop)
        if name not in self.scaled:
            return data
        scaled = self.scaled[name]
        stacked = data.ndim > 2  # along the first axis are experts then, with scales of their own
        scales = self._read(scaled.scale, start, stop) if stacked else self._read(scaled.scale)
        return scaled.dequantise(data, scales, 0 if stacked else start, self._dtype())

    def _read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        file = self.file_of[name]
        if file not in self._handles:
            handle = safe_open(str(self.path / file), framework="pt")
            self._handles[file] = self._stack.enter_context(handle)
        if start == 0 and stop is None:
            return self._handles[file].get_tensor(name)
        return self._handles[file].get_slice(name)[start:stop]

    def sidecars(self) -> list[Path]:
        """Every file next to the weights that belongs to a folder written from this one."""
        return find_sidecars(self.path)

    def image_statistics(self) -> dict[str, list[float]]:
        """`image_mean` and `image_std` per channel; empty if the folder has no file for images."""
        return image_statistics(self.path)

    def model_arguments(self) -> dict[str, Any]:
        """What the folder says about its model beyond config.json, as arguments of its builder."""
        return {**self.image_statistics(), **({"tie_word_embeddings": False} if self.own_head else {})}

    def _read_shards(self) -> list[Shard]:
        names = self._shard_names()
        try:
            return [read_shard(self.path / name) for name in names]
        except ValueError as error:
            if is_quantised(self.config):  # in a dtype that headers of plain checkpoints do not have
                raise ValueError(refusal(self.path, self.config)) from error
            raise

    def _find_scaled(self) -> dict[str, Scaled]:
        """FP8 weights; the shards then show them as they are read, and no scales."""
        entries = {name: entry for shard in self.shards for name, entry in shard.entries.items()}
        wanted = {name: e for name, e in entries.items() if self._wanted(name.removesuffix(SCALE))}
        scaled = find_scaled(self.path, self.config, wanted)
        scales = {one.scale for one in scaled.values()}
        for i, shard in enumerate(self.shards if scaled else ()):
            seen = {
                n: e if n not in scaled else replace(e, dtype=self._dtype()) for n, e in shard.entries.items()
            }
            self.shards[i] = replace(shard, entries={n: e for n, e in seen.items() if n not in scales})
        return scaled

    def _dtype(self) -> torch.dtype:
        """What FP8 weights are dequantised to: config.json's dtype."""
        text = self.config.get("text_config") or {}
        named = [part.get(key) for part in (self.config, text) for key in ("dtype", "torch_dtype")]
        return _DTYPES.get(str(next(filter(None, named), None)), torch.bfloat16)

    def _has_own_head(self) -> bool:
        if not says_tied(self.config):
            return False
        shapes = {name: entry.shape for name, entry in self.entries()}
        heads = [name for name in shapes if name.endswith(HEAD)]
        embeddings = [name for name in shapes if name.endswith(EMBEDDINGS)]
        if len(heads) != 1 or len(embeddings) != 1 or shapes[heads[0]] != shapes[embeddings[0]]:
            return False
        return differ(self.read, heads[0], embeddings[0], shapes[heads[0]][0])

    def _shard_names(self) -> list[str]:
        if (self.path / INDEX).is_file():
            weight_map = self._weight_map()
            names = sorted({file for name, file in weight_map.items() if self._wanted(name)})
            check_shards(self.path, weight_map, names)
            return names
        if (self.path / WEIGHTS).is_file():
            return [WEIGHTS]
        if is_quantised(self.config) or any(self.path.glob("*.gguf")):
            raise ValueError(refusal(self.path, self.config))
        if any(self.path.glob("*.bin")):
            raise ValueError(
                f"{self.path}: holds pickled weights (.bin) only, which are never unpickled here; convert it "
                "once with transformers: "
                "AutoModelForImageTextToText.from_pretrained(folder).save_pretrained(new_folder)"
            )
        raise ValueError(f"{self.path}: neither {WEIGHTS} nor {INDEX} is there (it holds {self._listing()})")

    def _weight_map(self) -> dict[str, str]:
        return read_weight_map(self.path / INDEX)

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
