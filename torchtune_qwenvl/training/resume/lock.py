"""One run per `output_dir`: rank 0 holds a lock, which ends with its process, however that ends.

The lock is the kernel's on the file `.lock`, whose content says who holds it. Some network file systems know
no locks: there the content counts. If it names a process of this host that is gone, the lock is stale.
"""

import errno
import fcntl
import json
import logging
import os
import socket
import time
from pathlib import Path
from typing import IO, Any

from torchtune_qwenvl import durable
from torchtune_qwenvl.distributed import World
from torchtune_qwenvl.training.resume.folders import clean

log = logging.getLogger(__name__)

LOCK = ".lock"


class Lock:
    """Held from its creation to `release`.

    Args:
        folder: into which one run writes; created if it is not there.

    Raises:
        ValueError: another run holds it, named by host, process and time; or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self._file: IO[str] | None = None
        with durable.saying_what(folder):
            durable.make_folder(folder)
        while self._file is None:
            self._file = self._try()
        with durable.saying_what(self.path):
            self._file.truncate(0)
            self._file.write(json.dumps(_this_process()))
            self._file.flush()

    def _try(self) -> IO[str] | None:
        """The locked file; None if its last holder has removed it meanwhile."""
        with durable.saying_what(self.path):
            file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115
        holder = _holder(file)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN) or _lives(holder):
                file.close()
                raise self._taken(holder) from None
        try:
            if os.path.samestat(os.fstat(file.fileno()), self.path.stat()):
                return file
        except FileNotFoundError:
            pass
        file.close()
        return None

    def _taken(self, holder: dict[str, Any]) -> ValueError:
        return ValueError(
            f"{self.path.parent}: another run is writing there (process {holder.get('pid', '?')} on "
            f"{holder.get('host', 'an unknown host')}, since {holder.get('since', '?')}). Wait for it, stop "
            f"it, or choose another output_dir; if it is gone, remove {self.path}."
        )

    def release(self) -> None:
        """Let others in; a second call does nothing."""
        if self._file is not None:
            self.path.unlink(missing_ok=True)
            self._file.close()
            self._file = None


def own(output_dir: Path, world: World) -> Lock | None:
    """Lock `output_dir` for this run, and remove what killed runs have left there. All ranks must call.

    Returns:
        The lock on rank 0, which holds it for all.

    Raises:
        ValueError: see `Lock`; or something is in the way of what the run will write.
    """
    lock = None
    with world.together():
        if world.is_main:
            lock = Lock(output_dir)
            with durable.saying_what(output_dir):
                if left := clean(output_dir):
                    log.info(f"{output_dir}: removed what a killed run has left: {', '.join(left)}")
    return lock


def _holder(file: IO[str]) -> dict[str, Any]:
    file.seek(0)
    try:
        found = json.loads(file.read())
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {
        "host": socket.gethostname(),
        "pid": pid,
        "start": _start_of(pid),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def _lives(holder: dict[str, Any]) -> bool:
    """Whether the process that wrote a lock may still be there; of another host nobody can tell."""
    if not holder:
        return False
    if holder.get("host") != socket.gethostname():
        return True
    try:
        os.kill(int(holder["pid"]), 0)
    except (ProcessLookupError, KeyError, ValueError):
        return False
    except PermissionError:
        pass
    return holder.get("start") == _start_of(int(holder["pid"]))


def _start_of(pid: int) -> str | None:
    """When a process was started, so that another one with its number is not taken for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
