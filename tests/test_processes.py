"""Processes end with the process that started them."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from launch import FORKS
from torch.utils.data import DataLoader, Dataset

from torchtune_qwenvl.data.workers import worker_options
from torchtune_qwenvl.processes import end_with_launcher, watch_parent


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone_after(pid: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while lives(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not lives(pid)


class Busy(Dataset):
    """A sample that takes for ever: its worker does not look at its queue meanwhile."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> int:
        (self.folder / f"{os.getpid()}.worker").touch()
        time.sleep(600)
        return index


def parent(folder: Path, kind: str) -> None:
    """Has children, and is killed."""
    if kind == "workers":
        next(iter(DataLoader(Busy(folder), **worker_options(2), multiprocessing_context="fork")))
    pid = os.fork()
    if pid == 0:
        if kind == "saves":
            signal.signal(signal.SIGTERM, lambda *_: (folder / "saved").touch())
        watch_parent(grace=0.5 if kind == "saves" else 0.0, every=0.05)
        (folder / f"{os.getpid()}.worker").touch()
        time.sleep(600)
    time.sleep(600)


@pytest.mark.parametrize("kind", ["workers", "child", "saves"])
def test_children_of_a_killed_process_end(tmp_path: Path, kind: str) -> None:
    process: Any = FORKS.Process(target=parent, args=(tmp_path, kind))
    process.start()
    end = time.monotonic() + 200
    count = 2 if kind == "workers" else 1
    while len(found := list(tmp_path.glob("*.worker"))) < count and time.monotonic() < end:
        time.sleep(0.05)
    process.kill()
    process.join()
    assert len(found) == count
    assert all(gone_after(int(path.stem), 30) for path in found)
    assert (tmp_path / "saved").exists() == (kind == "saves")


def test_a_run_of_a_shell_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    before = threading.active_count()
    end_with_launcher()
    assert threading.active_count() == before
