"""Files with digests: computed while a file is written, and compared before it is read.

BLAKE2b runs in a thread next to the writing, and neither holds the other up: a save takes as long as the
slower of the two.
"""

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

BLOCK = 1 << 22


class DigestFile:
    """A file to write, for `torch.save`. Use it as a context manager: at its end the file is on the disk.

    Args:
        path: of the file.

    Attributes:
        error: the first OSError of a write; torch hides it in an error of its own.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, 0
        self.error: OSError | None = None
        self._digest = new_digest()
        self._file = open(path, "wb")  # noqa: SIM115
        self._pool = ThreadPoolExecutor(1)

    def write(self, data: Any) -> int:
        """Write bytes, and hash them meanwhile."""
        view = memoryview(data).cast("B")
        hashed = self._pool.submit(self._digest.update, view) if len(view) > 1 << 16 else None
        if hashed is None:
            self._digest.update(view)
        try:
            self._file.write(view)
        except OSError as error:
            self.error = self.error or error
            raise
        finally:
            if hashed is not None:
                hashed.result()
        self.size += len(view)
        return len(view)

    def flush(self) -> None:
        """Hand everything to the system."""
        try:
            self._file.flush()
        except OSError as error:
            self.error = self.error or error
            raise

    def facts(self) -> dict[str, Any]:
        """What `check_file` compares."""
        return {"bytes": self.size, "blake2b": self._digest.hexdigest()}

    def __enter__(self) -> "DigestFile":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                self.flush()
                os.fsync(self._file.fileno())
        finally:
            self._pool.shutdown()
            try:
                self._file.close()
            except OSError as closing:
                self.error = self.error or closing
        if self.error is not None:
            raise self.error from error


def new_digest() -> hashlib.blake2b:
    """The hash that all digests here are made with."""
    return hashlib.blake2b(digest_size=20)


def check_file(path: Path, facts: Mapping[str, Any]) -> None:
    """Raise a ValueError that names the file unless it is the one that `facts` were taken from."""
    if not path.is_file():
        raise ValueError(f"{path}: missing")
    size, expected = path.stat().st_size, facts["bytes"]
    if size != expected:
        raise ValueError(f"{path}: {size} bytes, but {expected} were written: cut off, or another file")
    digest = new_digest()
    try:
        with open(path, "rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error
    if digest.hexdigest() != facts["blake2b"]:
        raise ValueError(f"{path}: damaged, or of another step, rank or run: its digest differs")
