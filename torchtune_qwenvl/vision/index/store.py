"""An index on disk. A part is committed by renaming meta.json; whatever came after the last commit is undone.

part-00000.npy ...   vectors [rows, width], memory-mapped when read
files.jsonl          {"name": ...} per image, in the order of the vectors; with "tokens" if it has several
failed.jsonl         {"name": ..., "reason": ...} per bad image
meta.json            see `Meta`
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from torchtune_qwenvl.vision.index.meta import META, Meta, Part, read_meta

FILES, FAILED, LOCK, PARTIAL = "files.jsonl", "failed.jsonl", ".lock", ".partial"


class Embedded(NamedTuple):
    """Images of a part: all their vectors [rows, width], their names, and how many vectors each has."""

    vectors: np.ndarray
    names: Sequence[str]
    counts: Sequence[int]


class Store:
    """Reads and appends to an index folder; see `create` and `open`."""

    def __init__(self, folder: Path, meta: Meta) -> None:
        self.folder, self.meta = folder, meta

    @classmethod
    def create(cls, folder: str | Path, meta: Meta) -> Store:
        """An empty index.

        Raises:
            ValueError: the folder holds something else.
        """
        folder = Path(folder).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        others = [path.name for path in folder.iterdir() if path.name not in (LOCK, META + PARTIAL)]
        if others:
            raise ValueError(
                f"{folder} holds {sorted(others)[0]} and no {META}: it is no index, and stays as it is. "
                "Choose another folder"
            )
        store = cls(folder, meta)
        with store.locked():
            store._write_meta(meta)
        return store

    @classmethod
    def open(cls, folder: str | Path) -> Store:
        """An index that is there.

        Raises:
            ValueError: no index, or one whose files are missing or damaged; the file is named.
        """
        folder = Path(folder).absolute()
        store = cls(folder, read_meta(folder))
        for part in store.meta.parts:
            store._vectors(part)
        for name, size in ((FILES, store.meta.files_bytes), (FAILED, store.meta.failed_bytes)):
            found = (folder / name).stat().st_size if (folder / name).is_file() else 0
            if found < size:
                raise ValueError(f"{folder / name}: {found} bytes, expected {size}. Build the index again")
        return store

    def parts(self) -> Iterator[tuple[int, np.ndarray]]:
        """(number of the first row, vectors [rows, width]) of each part; nothing is read yet."""
        first = 0
        for part in self.meta.parts:
            yield first, self._vectors(part)
            first += part.rows

    def names(self) -> list[str]:
        """Names of the images."""
        return [line["name"] for line in self._lines(FILES, self.meta.files_bytes)]

    def token_counts(self) -> list[int]:
        """Number of vectors of each image, in an index of tokens."""
        return [line["tokens"] for line in self._lines(FILES, self.meta.files_bytes)]

    def failed(self) -> dict[str, str]:
        """Name of each bad image -> the reason."""
        lines = self._lines(FAILED, self.meta.failed_bytes)
        return {line["name"]: line["reason"] for line in lines}

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Append inside: nobody else does meanwhile, and what a killed writer left is removed."""
        with self.locked():
            self.meta = read_meta(self.folder)
            self._undo()
            yield

    def append(self, images: Embedded, failed: Sequence[tuple[str, str]], *, complete: bool) -> None:
        """Commit a part; until the last step nothing of it counts.

        Args:
            images: the good ones.
            failed: name and reason of each bad image.
            complete: whether nothing that was asked for is missing now.
        """
        meta, parts, vectors = self.meta, self.meta.parts, images.vectors
        if len(vectors):
            part = Part(f"part-{len(parts):05d}.npy", len(vectors))
            _write_whole(self.folder / part.file, lambda file: np.save(file, vectors))
            parts = (*parts, part)
        lines: list[dict[str, Any]] = [{"name": name} for name in images.names]
        if meta.keeps_tokens:
            lines = [{**line, "tokens": n} for line, n in zip(lines, images.counts, strict=True)]
        files = _append(self.folder / FILES, lines)
        bad = _append(self.folder / FAILED, ({"name": n, "reason": reason} for n, reason in failed))
        self._write_meta(
            replace(
                meta,
                width=vectors.shape[1] if len(vectors) else meta.width,
                parts=parts,
                rows=meta.rows + len(images.names),
                failed=meta.failed + len(failed),
                files_bytes=files,
                failed_bytes=bad,
                complete=complete,
            )
        )

    def mark(self, *, complete: bool) -> None:
        """Say whether something that was asked for is missing."""
        if self.meta.complete != complete:
            self._write_meta(replace(self.meta, complete=complete))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else writes inside; a lock ends with its process, however that ends."""
        with (self.folder / LOCK).open("w") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ValueError(
                    f"{self.folder}: another process is writing this index; wait for it"
                ) from None
            yield

    def _undo(self) -> None:
        counted = {part.file for part in self.meta.parts}
        for path in self.folder.glob("part-*.npy"):
            if path.name not in counted:
                path.unlink()
        for path in self.folder.glob(f"*{PARTIAL}"):
            path.unlink()
        for name, size in ((FILES, self.meta.files_bytes), (FAILED, self.meta.failed_bytes)):
            (self.folder / name).touch()
            os.truncate(self.folder / name, size)

    def _vectors(self, part: Part) -> np.ndarray:
        file = self.folder / part.file
        try:
            vectors = np.load(file, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise ValueError(f"{file}: missing or damaged ({error}). Build the index again") from error
        if vectors.shape != (part.rows, self.meta.width):
            raise ValueError(f"{file}: expected {part.rows} x {self.meta.width}, got {vectors.shape}")
        return vectors

    def _lines(self, name: str, size: int) -> Iterator[dict[str, Any]]:
        """The lines that count, without those of a part that is being written."""
        if not size:
            return
        with (self.folder / name).open("rb") as file:
            while file.tell() < size:
                yield json.loads(file.readline())

    def _write_meta(self, meta: Meta) -> None:
        text = meta.to_json().encode()
        _write_whole(self.folder / META, lambda file: file.write(text))
        self.meta = meta


def _write_whole(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """A file that is there completely or not at all, also after a power cut."""
    partial = path.with_name(path.name + PARTIAL)
    with partial.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _append(path: Path, lines: Iterable[Mapping[str, Any]]) -> int:
    """Append JSON lines; returns the size of the file in bytes."""
    with path.open("ab") as file:
        # ASCII keeps file names that are no valid UTF-8.
        file.writelines(json.dumps(line).encode() + b"\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())
        return file.tell()
