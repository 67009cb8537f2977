"""What a run does first: it locks its folder, cleans it, and says what cannot be written there."""

import fcntl
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import FORKS
from omegaconf import OmegaConf

from torchtune_qwenvl.distributed import World
from torchtune_qwenvl.training import resume
from torchtune_qwenvl.training.resume import lock
from torchtune_qwenvl.training.resume.lock import LOCK, Lock

WORLD = World(torch.device("cpu"))


def config(output_dir: Path, **more: Any) -> Any:
    logs = {"log_dir": str(output_dir / "logs")}
    defaults = {"resume": False, "accept_changed_data": False, "metric_logger": logs}
    return OmegaConf.create({"output_dir": str(output_dir), **defaults, **more})


def begin(output_dir: Path, **more: Any) -> Any:
    cfg = config(output_dir, **more)
    return resume.begin(cfg, WORLD, resume.Identity.of(cfg))


def hold(folder: Path, ready: Any, release: Any) -> None:
    """Own a folder in a process of its own."""
    from torchtune_qwenvl.training.resume.lock import Lock

    held = Lock(folder)
    ready.set()
    release.wait(60)
    held.release()


def test_one_run_at_a_time(tmp_path: Path) -> None:
    ready, release = FORKS.Event(), FORKS.Event()
    process = FORKS.Process(target=hold, args=(tmp_path, ready, release))
    process.start()
    assert ready.wait(200)
    (tmp_path / "step_4.tmp").mkdir()  # of that run
    with pytest.raises(ValueError, match=rf"another run is writing there \(process {process.pid} on "):
        begin(tmp_path)
    assert (tmp_path / "step_4.tmp").is_dir()
    process.kill()  # its lock ends with it
    process.join()
    held, _ = begin(tmp_path)
    assert not (tmp_path / "step_4.tmp").exists()
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    held.release()
    assert not (tmp_path / LOCK).exists()


@pytest.mark.parametrize(
    "what", ["gone", "another one with its number", "other host", "lives", "broken", "none"]
)
def test_without_locks_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """On file systems that know no locks the content counts."""

    def unsupported(*args: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "lockf", unsupported)
    here = {"host": socket.gethostname(), "pid": os.getpid(), "start": lock._start_of(os.getpid())}
    holder = {
        "gone": {**here, "pid": 2**22 + 1},
        "another one with its number": {**here, "start": "1"},
        "other host": {**here, "host": "elsewhere"},
        "lives": here,
        "broken": None,
        "none": {},
    }[what]
    (tmp_path / LOCK).write_text("{" if holder is None else json.dumps(holder))
    if what in ("other host", "lives"):
        with pytest.raises(ValueError, match=rf"another run is writing there.* remove {tmp_path / LOCK}"):
            Lock(tmp_path)
    else:
        Lock(tmp_path).release()
    assert fcntl.lockf is unsupported


IN_THE_WAY = {
    "metrics.jsonl": "is a folder",
    "model": "is a file",
    "adapter": "is a file",
    "step_4": "is a file",
}


def test_everything_in_the_way_is_named_at_once(tmp_path: Path) -> None:
    for name, what in IN_THE_WAY.items():
        (tmp_path / name).mkdir() if what == "is a folder" else (tmp_path / name).write_text("x")
    with pytest.raises(ValueError) as error:
        begin(tmp_path)
    assert all(f"{tmp_path / name} {what}" in str(error.value) for name, what in IN_THE_WAY.items())
    assert not (tmp_path / LOCK).exists()


@pytest.mark.parametrize(
    ("output_dir", "reason"),
    [("file", "File exists"), ("file/below", "Not a directory"), ("a" * 300, "File name too long")],
)
def test_an_output_dir_that_cannot_be(tmp_path: Path, output_dir: str, reason: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match=rf"{output_dir} cannot be written: {reason}"):
        begin(tmp_path / output_dir)


def test_logs_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("x")
    with pytest.raises(ValueError, match="logs cannot be written: File exists"):
        begin(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(ValueError, match="cannot be written: Permission denied"):
        begin(tmp_path / "out")


def test_a_refused_run_lets_go(tmp_path: Path, training: Any) -> None:
    training.save(tmp_path, 4)
    with pytest.raises(ValueError, match="is there from an earlier run"):
        begin(tmp_path)
    assert not (tmp_path / LOCK).exists()
    held, saved = begin(tmp_path, resume=True)
    assert saved.folder == tmp_path / "step_4" and saved.progress().step == 4
    held.release()
