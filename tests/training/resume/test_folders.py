"""The folders of a run: which one is resumed, which are kept, and what a full disk leaves."""

import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from torchtune_qwenvl.distributed import World
from torchtune_qwenvl.training import resume
from torchtune_qwenvl.training.resume.folders import clean
from torchtune_qwenvl.training.resume.meta import META

WORLD = World(torch.device("cpu"))
Usage = namedtuple("Usage", "total used free")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_back_to_the_bit(tmp_path: Path, training: Any) -> None:
    fresh_model = nn.Linear(3, 2)
    fresh = torch.optim.AdamW(fresh_model.parameters(), lr=0.1)
    folder = training.save(tmp_path, 4)
    expected = torch.rand(3)
    saved = resume.read(folder, WORLD)
    saved.restore(fresh_model, fresh, None)
    assert saved.progress() == resume.Progress(step=4, epoch=1, data={"epoch": 1, "samples_done": 6})
    assert torch.equal(torch.rand(3), expected)
    for ours, theirs in zip(fresh_model.parameters(), training.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        for key, value in training.optimizer.state[theirs].items():
            assert torch.equal(fresh.state[ours][key], value), key


def test_the_last_is_the_highest_number(tmp_path: Path, training: Any) -> None:
    assert resume.find(tmp_path, True) is None and resume.find(tmp_path, False) is None
    for step in (9, 10):
        training.save(tmp_path, step)
    (tmp_path / "step_11.tmp").mkdir()
    assert resume.find(tmp_path, True) == tmp_path / "step_10"
    assert resume.find(tmp_path, str(tmp_path / "step_9")) == tmp_path / "step_9"
    with pytest.raises(ValueError, match="resume=true"):
        resume.find(tmp_path, False)
    for wrong in ("step_11.tmp", "step_3", "."):
        with pytest.raises(ValueError, match="expected a finished step_N folder"):
            resume.find(tmp_path, str(tmp_path / wrong))


def flip(path: Path, at: int = 1000) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a flipped bit": (lambda f: flip(f / "rank_0.pt"), r"step_3/rank_0\.pt: damaged, or of another step"),
    "cut off": (
        lambda f: (f / "rank_0.pt").write_bytes((f / "rank_0.pt").read_bytes()[:-1]),
        r"step_3/rank_0\.pt: \d+ bytes, but \d+ were written",
    ),
    "missing": (lambda f: (f / "rank_0.pt").unlink(), r"step_3/rank_0\.pt: missing"),
    "of another step": (
        lambda f: shutil.copy(f.parent / "step_2/rank_0.pt", f / "rank_0.pt"),
        r"step_3/rank_0\.pt: ",
    ),
    "no run.json": (lambda f: (f / META).unlink(), r"step_3/run\.json: missing"),
    "run.json of another step": (
        lambda f: shutil.copy(f.parent / "step_2" / META, f / META),
        r"step_3/run\.json: of step 2",
    ),
    "edited": (
        lambda f: (f / META).write_text((f / META).read_text().replace('"epoch": 1', '"epoch": 0')),
        r"step_3/run\.json: damaged",
    ),
    "empty": (lambda f: (f / META).write_text(""), r"step_3/run\.json: empty"),
    "a list": (lambda f: (f / META).write_text("[]"), r"step_3/run\.json: expected a JSON object"),
    "of an earlier version": (
        lambda f: (f / META).write_text('{"world_size": 1, "progress": {}}'),
        r"step_3/run\.json: written by an earlier version",
    ),
    "a file": (lambda f: (shutil.rmtree(f), f.write_text("x")), "step_3: expected a folder, found a file"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named_and_the_last_whole_folder(tmp_path: Path, training: Any, what: str) -> None:
    damage, message = DAMAGE[what]
    for step in (1, 2, 3):
        training.go()
        training.save(tmp_path, step)
    damage(tmp_path / "step_3")
    with pytest.raises(ValueError, match=message + r".* whole: resume=.*step_2, or resume=last_whole"):
        resume.find(tmp_path, True)
    assert resume.find(tmp_path, "last_whole") == tmp_path / "step_2"
    (tmp_path / "step_2/rank_0.pt").unlink()
    assert resume.find(tmp_path, "last_whole") == tmp_path / "step_1"
    flip(tmp_path / "step_1" / META, 40)
    with pytest.raises(ValueError, match=message + r".*No older folder is whole"):
        resume.find(tmp_path, "last_whole")


def test_folders_of_two_runs(tmp_path: Path, training: Any) -> None:
    training.save(tmp_path, 1)
    training.identity = resume.Identity()
    training.save(tmp_path, 2)
    with pytest.raises(ValueError, match=r"step_2 and .*step_1 are of two runs"):
        resume.find(tmp_path, True)
    assert resume.find(tmp_path, str(tmp_path / "step_2")) == tmp_path / "step_2"


def test_keeps_the_last_ones(tmp_path: Path, training: Any) -> None:
    for step in (8, 9, 10, 11):
        training.save(tmp_path, step, keep_last_n=2)
    assert names(tmp_path) == ["step_10", "step_11"]
    training.save(tmp_path, 11, keep_last_n=None)  # again, over itself
    assert names(tmp_path) == ["step_10", "step_11"]


def test_another_way_from_an_earlier_step_removes_nothing(tmp_path: Path, training: Any) -> None:
    for step in (2, 4, 6):
        training.save(tmp_path, step)
    training.save(tmp_path, 3, keep_last_n=2)
    assert names(tmp_path) == ["step_2", "step_3", "step_4.aside", "step_6.aside"]
    assert resume.find(tmp_path, True) == tmp_path / "step_3"


def test_full_disk_loses_nothing(tmp_path: Path, training: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    training.save(tmp_path, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(100, 90, 10))
    with pytest.raises(ValueError, match="not enough disk"):
        training.save(tmp_path, 2, keep_last_n=1)
    assert names(tmp_path) == ["step_1"]


def test_a_failed_write_is_one_line_and_leaves_nothing(tmp_path: Path, training: Any) -> None:
    import resource

    training.save(tmp_path, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))
    try:
        with pytest.raises(ValueError, match=r"step_2\.tmp/rank_0\.pt cannot be written: File too large"):
            training.save(tmp_path, 2, keep_last_n=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == ["step_1"] and resume.find(tmp_path, True) == tmp_path / "step_1"


def test_what_killed_runs_leave_is_cleaned(tmp_path: Path, training: Any) -> None:
    training.save(tmp_path, 3)
    (tmp_path / "step_3").rename(tmp_path / "step_3.old.tmp")  # killed while it was replaced
    for folder in ("step_4.tmp", ".model.abc.partial", "Qwen2.5", ".Qwen2.5.xyz.old", ".lost.one.xyz.old"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file").write_text(folder)
    (tmp_path / "step_5.tmp").write_text("a file")
    assert len(clean(tmp_path)) == 6
    assert names(tmp_path) == ["Qwen2.5", "lost.one", "step_3"]
    assert (tmp_path / "Qwen2.5/file").read_text() == "Qwen2.5"
    assert resume.find(tmp_path, True) == tmp_path / "step_3"


def test_run_json_says_what_the_folder_holds(tmp_path: Path, training: Any) -> None:
    folder = training.save(tmp_path, 4)
    found = json.loads((folder / META).read_text())
    assert found["run"] == training.identity.run and found["progress"]["step"] == 4
    assert found["files"]["rank_0.pt"]["bytes"] == (folder / "rank_0.pt").stat().st_size


def test_schedule_must_be_the_same(tmp_path: Path, training: Any) -> None:
    folder = training.save(tmp_path, 1)
    scheduler = torch.optim.lr_scheduler.ConstantLR(training.optimizer)
    with pytest.raises(ValueError, match="saved without an lr_scheduler"):
        resume.read(folder, WORLD).restore(training.model, training.optimizer, scheduler)
