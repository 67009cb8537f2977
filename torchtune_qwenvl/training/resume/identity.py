"""What a checkpoint depends on: the settings of its run, and the content of the files that the run reads."""

import json
import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from pyarrow import parquet

from torchtune_qwenvl.counted import counted
from torchtune_qwenvl.settings.datasets import COMPONENT
from torchtune_qwenvl.training.resume.digests import new_digest
from torchtune_qwenvl.training.resume.meta import Meta
from torchtune_qwenvl.training.resume.rules import (
    Rule,
    changes,
    flattened,
    is_unremarkable,
    rule_of,
)

WHOLE, BLOCKS, BLOCK = 1 << 26, 64, 1 << 20
# Arguments of datasets whose value may be the bare name of a file or folder.
SOURCES = ("source", "data_files", "data_dir")
MEDIA = frozenset(
    (
        *(".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
        *(".mp4", ".mkv", ".webm", ".mov", ".avi", ".mp3", ".wav", ".npy"),
    )
)
CHECKPOINT = "checkpoint_dir"


@dataclass
class Identity:
    """Of a run: its id and settings.

    Attributes:
        settings: every config key by its dotted name, resolved.
        run: id; a resumed run keeps that of the folder it comes from.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    run: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def of(cls, cfg: DictConfig) -> "Identity":
        """Of a run with this config."""
        return cls(flattened(OmegaConf.to_container(cfg, resolve=True)))

    @cached_property
    def content(self) -> dict[str, str]:
        """Fingerprint of each file or folder that a key of dataset and checkpoint names, by that key."""
        found = {key: fingerprint(Path(value)) for key, value in self._named()}
        return {key: value for key, value in found.items() if value is not None}

    @cached_property
    def samples(self) -> dict[str, int]:
        """Number of samples in each file that a key of dataset names, by that key, where it is soon known."""
        found = {key: count_samples(Path(value)) for key, value in self._named() if key != CHECKPOINT}
        return {key: count for key, count in found.items() if count is not None}

    def _named(self) -> Iterator[tuple[str, str]]:
        for key, value in self.settings.items():
            steps = [step for step in key.split(".") if not step.isdigit()]
            of_dataset = steps[0] == "dataset" and steps[-1] not in (COMPONENT, "image_root")
            if isinstance(value, str) and (
                key == CHECKPOINT or (of_dataset and (steps[-1] in SOURCES or os.sep in value))
            ):
                yield key, value

    def check(
        self, saved: Meta, folder: Path, accept_changed_data: bool = False
    ) -> dict[str, tuple[Any, Any]]:
        """The settings that this run changes, {dotted key: (before, now)}; all are honoured.

        Args:
            saved: run.json of the folder.
            folder: the folder, for messages.
            accept_changed_data: the files of the dataset may have been edited since.

        Raises:
            ValueError: a change that cannot be honoured; names each key.
        """
        if not saved.settings:
            return {}
        found = changes(saved.settings, self.settings)
        refused = [
            f"{path}: {_shown(old)} in that run, {_shown(new)} now"
            for path, (old, new) in found.items()
            if rule_of(path) is Rule.REFUSED
        ]
        refused += self._other_content(saved, accept_changed_data)
        if refused:
            raise ValueError(
                f"{folder} cannot be resumed with other settings than it depends on:\n"
                + "\n".join(refused)
                + "\nResume with those of that run, or start a new run in another output_dir."
            )
        return {path: change for path, change in found.items() if not is_unremarkable(path)}

    def _other_content(self, saved: Meta, accept_changed_data: bool) -> Iterator[str]:
        for key in dict.fromkeys([*saved.content, *self.content]):
            if saved.content.get(key) == self.content.get(key):
                continue
            if key == CHECKPOINT:
                yield f"{key}: {self.settings.get(key)} holds other files than that run began with"
            elif not accept_changed_data:
                yield (
                    f"{key}: {self._what_differs(key, saved)}. If samples were only corrected, none added or "
                    "removed, accept_changed_data=true goes on"
                )

    def _what_differs(self, key: str, saved: Meta) -> str:
        """How the content under a key differs from that run's, with the numbers of samples if known."""
        old, new = saved.settings.get(key), self.settings.get(key)
        before, now = _with_count(old, saved.samples.get(key)), _with_count(new, self.samples.get(key))
        if old != new:
            return f"{before} in that run, {now} now, whose content differs"
        had, has = saved.samples.get(key), self.samples.get(key)
        if had is None or has is None or had == has:
            return f"the content of {new} has changed since"
        return f"the content of {new} has changed since: {counted(had, 'sample')} in that run, {has:,} now"


def fingerprint(path: Path) -> str | None:
    """A digest of the content of a file or folder, wherever it lies; None if there is no such path.

    Files up to 64 MB are read whole, of larger ones 64 blocks of 1 MB. Of images, videos and other media in a
    folder only the names count.
    """
    digest = new_digest()
    try:
        if path.is_file():
            _add_file(digest, path)
            return digest.hexdigest()
        if not path.is_dir():
            return None
    except OSError:  # a name that no path can have
        return None
    for inner, folders, files in os.walk(path):
        folders.sort()
        for name in sorted(files):
            file = Path(inner, name)
            digest.update(f"{file.relative_to(path)}\n".encode("utf-8", "surrogateescape"))
            if file.suffix.lower() not in MEDIA and file.is_file():
                _add_file(digest, file)
    return digest.hexdigest()


def _add_file(digest: Any, path: Path) -> None:
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(f"{size}\n".encode())
        whole = size <= WHOLE
        for number in range(-(-size // BLOCK) if whole else BLOCKS):
            if not whole:
                file.seek((size - BLOCK) * number // (BLOCKS - 1))
            digest.update(file.read(BLOCK))


def count_samples(path: Path) -> int | None:
    """Number of samples in a .jsonl, .json or .parquet file; None for large texts and everything else."""
    try:
        if path.suffix == ".parquet":
            return parquet.read_metadata(path).num_rows
        if path.suffix not in (".json", ".jsonl") or path.stat().st_size > WHOLE:
            return None
        text = path.read_bytes()
        return len(json.loads(text)) if path.suffix == ".json" else sum(map(bool, text.split(b"\n")))
    except (OSError, ValueError, TypeError, RecursionError):  # which the dataset reports
        return None


def _with_count(value: Any, samples: int | None) -> str:
    return _shown(value) if samples is None else f"{_shown(value)} ({counted(samples, 'sample')})"


def _shown(value: Any) -> str:
    return "not set" if value is None else str(value)
