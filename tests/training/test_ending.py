"""A run whose result cannot be written keeps what was trained, and says where."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from torchtune_qwenvl.training.ending import close, keeping_what_was_trained
from torchtune_qwenvl.training.resume import META


def stand_in(folder: Path, fails: bool = False) -> Any:
    def save() -> Path:
        if fails:
            raise ValueError("step_8.tmp/rank_0.pt cannot be written: No space left on device")
        run.saves += 1
        return folder / "step_8"

    run = SimpleNamespace(output_dir=folder, progress=SimpleNamespace(step=8), save=save, saves=0)
    return run


def test_the_step_is_saved_and_named(tmp_path: Path) -> None:
    run = stand_in(tmp_path)
    error = pytest.raises(ValueError, match=r"model/ is full\nWhat was trained is in .*step_8: go on by tune")
    with error, keeping_what_was_trained(run, "tune-qwenvl export"):
        raise ValueError("model/ is full")
    assert run.saves == 1
    (tmp_path / "step_8").mkdir()
    (tmp_path / "step_8" / META).touch()  # saved by the last step
    error = pytest.raises(ValueError, match=r"What was trained is in .*step_8")
    with error, keeping_what_was_trained(run, "tune-qwenvl export"):
        raise ValueError("model/ is full")
    assert run.saves == 1


def test_no_room_for_that_either(tmp_path: Path) -> None:
    error = pytest.raises(ValueError, match=r"full\nWhat was trained could not be saved either: step_8\.tmp/")
    with error, keeping_what_was_trained(stand_in(tmp_path, fails=True), "tune-qwenvl export"):
        raise ValueError("model/ is full")


def test_nothing_stays_open() -> None:
    closed: list[str] = []
    logger = SimpleNamespace(close=lambda: closed.append("logger"))
    lock = SimpleNamespace(release=lambda: closed.append("lock"))
    close(SimpleNamespace(logger=logger, lock=lock))  # type: ignore[arg-type]
    close(SimpleNamespace(logger=None, lock=None))  # type: ignore[arg-type]
    assert closed == ["logger", "lock"]
