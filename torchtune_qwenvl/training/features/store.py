"""Features of images and clips on disk, shared between processes and runs.

<root>/<fingerprint of the encoder>/<name of its writer>.features     shards, see entries.py
<root>/.lock                                                         held while an entry is written

Every process that writes has shards of its own, so that two never write to one file. Readers look at the ends
of all shards for new entries whenever they miss one. Nothing that was written is changed or deleted.
"""

from __future__ import annotations

import fcntl
import logging
import os
import uuid
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from torch import Tensor

from torchtune_qwenvl import durable
from torchtune_qwenvl.training.features.entries import Place, packed, read, scan

log = logging.getLogger(__name__)

LOCK, SHARD = ".lock", ".features"
SHARD_BYTES = 2**30  # a shard with more gets no further entry
MAX_MAPPED = 64  # shards that one process maps at once


@dataclass(frozen=True)
class StorePlace:
    """Where a store is, and what is in it.

    Attributes:
        root: folder of all encoders' features.
        fingerprint: of the encoder.
        parts, width: of an entry, see `entries.py`; entries of another shape are not read.
        limit: bytes that all files in `root` may take.
    """

    root: Path
    fingerprint: str
    parts: int
    width: int
    limit: int


class FeatureStore:
    """The features that one encoder gives, by a key of the image or clip.

    Args:
        place: of the store; its folder is created if it is not there.

    Raises:
        ValueError: the folder cannot be written.
    """

    def __init__(self, place: StorePlace) -> None:
        self.root, self.limit = place.root.absolute(), place.limit
        self.folder, self.shape = self.root / place.fingerprint, (place.parts, place.width)
        self.full = False
        self._places: dict[bytes, list[Place]] = {}
        self._scanned: dict[str, int] = {}
        self._mapped: OrderedDict[Path, np.ndarray] = OrderedDict()
        self._shard: IO[bytes] | None = None
        durable.make_folder(self.folder)
        with durable.saying_what(self.root / LOCK), self._locked():
            pass
        self.refresh()

    def __len__(self) -> int:
        """Images and clips that have an entry, as far as this process has looked."""
        return len(self._places)

    def get(self, key: bytes, tokens: int) -> Tensor | None:
        """The features bf16 [tokens, parts, width] of a key; None if there are none, or only damaged ones.

        Args:
            key: 32 bytes.
            tokens: how many visual tokens the image or clip has.
        """
        found = self._intact(key, tokens)
        if found is None:
            self.refresh()
            found = self._intact(key, tokens)
        return found

    def put(self, key: bytes, features: Tensor) -> None:
        """Store features [tokens, parts, width], unless they are there, or there is no room.

        Args:
            key: 32 bytes.
            features: bf16 on the CPU.
        """
        if self.full:
            return
        entry = packed(key, features)
        try:
            with self._locked():
                if self.get(key, len(features)) is not None:
                    return
                self.full = self._used() + len(entry) > self.limit
                if not self.full:
                    self._append(entry)
        except OSError as error:
            self.full = True
            log.warning(f"{self.folder}: no further features are kept, {error.strerror or error}")
            return
        if self.full:
            log.warning(
                f"{self.root}: {self.limit / 2**30:g} GiB are used, so no further features are kept, and "
                "images without any are encoded each time. Raise feature_cache_gib, or delete folders of "
                "encoders that are no longer trained with"
            )

    def refresh(self) -> None:
        """Look for entries that were written since."""
        for entry in self._shards(self.folder):
            start = self._scanned.get(entry.name, 0)
            if entry.stat().st_size <= start:
                continue
            for key, place in scan(Path(entry.path), start):
                self._scanned[entry.name] = place.end
                if place.shape[1:] == self.shape:
                    self._places.setdefault(key, []).append(place)

    def close(self) -> None:
        """Write what is left to disk, so that it survives a power cut."""
        if self._shard is not None:
            os.fsync(self._shard.fileno())
            self._shard.close()
            self._shard = None
            durable.sync_folder(self.folder)

    def _intact(self, key: bytes, tokens: int) -> Tensor | None:
        for place in self._places.get(key, ()):
            if place.shape[0] == tokens and (mapped := self._map(place)) is not None:
                features = read(mapped, place)
                if features is not None:
                    return features
        return None

    def _map(self, place: Place) -> np.ndarray | None:
        """The shard of an entry, mapped to memory; None if it is gone or was cut."""
        mapped = self._mapped.pop(place.file, None)
        try:
            # A page of a map that is no longer in its file would end the process.
            if place.file.stat().st_size < place.end:
                return None
            if mapped is None or len(mapped) < place.end:
                mapped = np.memmap(place.file, np.uint8, "r")
        except (OSError, ValueError):
            return None
        self._mapped[place.file] = mapped
        while len(self._mapped) > MAX_MAPPED:
            self._mapped.popitem(last=False)
        return mapped

    def _append(self, entry: bytes) -> None:
        """Write an entry to this process's shard; a part of it is taken back."""
        if self._shard is not None and self._shard.tell() >= SHARD_BYTES:
            self.close()
        if self._shard is None:
            self._shard = (self.folder / f"{uuid.uuid4().hex}{SHARD}").open("xb", buffering=0)
        start, rest = self._shard.tell(), memoryview(entry)
        try:
            while rest:
                rest = rest[self._shard.write(rest) :]
        except OSError:
            self._shard.truncate(start)
            raise

    def _used(self) -> int:
        folders = [entry.path for entry in os.scandir(self.root) if entry.is_dir()]
        return sum(shard.stat().st_size for folder in folders for shard in self._shards(folder))

    @staticmethod
    def _shards(folder: str | Path) -> Iterator[os.DirEntry[str]]:
        try:
            found = list(os.scandir(folder))
        except FileNotFoundError:  # somebody has made room
            return
        yield from sorted((one for one in found if one.name.endswith(SHARD)), key=lambda one: one.name)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Nobody else writes inside; a lock ends with its process, however that ends."""
        with (self.root / LOCK).open("w") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            yield
