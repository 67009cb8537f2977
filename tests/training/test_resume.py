"""The folders of a run: which one is resumed, which are kept, and what a full disk leaves."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from torch import nn

from torchtune_qwenvl.distributed import World
from torchtune_qwenvl.training import resume

WORLD = World(torch.device("cpu"))
Usage = namedtuple("Usage", "total used free")


class Training:
    """A model that has made one step."""

    def __init__(self) -> None:
        self.model = nn.Linear(3, 2)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.model(torch.ones(1, 3)).sum().backward()
        self.optimizer.step()

    def save(self, folder: Path, step: int, keep_last_n: int | None = None) -> Path:
        progress = resume.Progress(step=step, epoch=1, data={"epoch": 1, "samples_done": 6})
        return resume.save(folder, WORLD, self.model, self.optimizer, None, progress, keep_last_n)


def test_back_to_the_bit(tmp_path: Path) -> None:
    trained, fresh = Training(), Training()
    folder = trained.save(tmp_path, 4)
    expected = torch.rand(3)
    progress = resume.load(folder, WORLD, fresh.model, fresh.optimizer, None)
    assert progress == resume.Progress(step=4, epoch=1, data={"epoch": 1, "samples_done": 6})
    assert torch.equal(torch.rand(3), expected)
    for ours, theirs in zip(fresh.model.parameters(), trained.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        for key, value in trained.optimizer.state[theirs].items():
            assert torch.equal(fresh.optimizer.state[ours][key], value), key


def test_the_last_is_the_highest_number(tmp_path: Path) -> None:
    training = Training()
    assert resume.find(tmp_path, True) is None and resume.find(tmp_path, False) is None
    for step in (9, 10):
        training.save(tmp_path, step)
    (tmp_path / "step_11.tmp").mkdir()
    (tmp_path / "step_12").mkdir()  # without its run.json: not ours
    assert resume.find(tmp_path, True) == tmp_path / "step_10"
    assert resume.find(tmp_path, str(tmp_path / "step_9")) == tmp_path / "step_9"
    with pytest.raises(ValueError, match="resume=true"):
        resume.find(tmp_path, False)


def test_keeps_the_last_ones(tmp_path: Path) -> None:
    training = Training()
    for step in (8, 9, 10, 11):
        training.save(tmp_path, step, keep_last_n=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_10", "step_11"]
    training.save(tmp_path, 11, keep_last_n=None)  # again, over itself
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_10", "step_11"]


def test_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training()
    training.save(tmp_path, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100, 90, 10))
    with pytest.raises(ValueError, match="not enough disk"):
        training.save(tmp_path, 2, keep_last_n=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_1"]


def test_schedule_must_be_the_same(tmp_path: Path) -> None:
    training = Training()
    folder = training.save(tmp_path, 1)
    scheduler = torch.optim.lr_scheduler.ConstantLR(training.optimizer)
    with pytest.raises(ValueError, match="saved without an lr_scheduler"):
        resume.load(folder, WORLD, training.model, training.optimizer, scheduler)
