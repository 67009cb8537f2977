"""A power cut at any moment of a save or an export leaves the old state or the new one, never a mixture.

CAMPAIGN=1 pytest tests/campaigns/test_power_cut.py     every moment, ten times in random mode
"""

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from faults.campaign import campaign_seed, campaign_size
from faults.mini_run import write_model
from faults.power_cut import MODES, Disk, recorded
from torch import nn

from torchtune_qwenvl.checkpoints.writing import save_model
from torchtune_qwenvl.distributed import World
from torchtune_qwenvl.training import resume
from torchtune_qwenvl.training.resume.folders import clean

WORLD = World(torch.device("cpu"))


def cuts(disk: Disk, out: Path) -> Iterator[tuple[int, str, Path]]:
    """(moment, mode, folder after the cut) of each power cut, one folder at a time."""
    chance = random.Random(campaign_seed())
    repeats = {"synced": 1, "journal": 1, "random": campaign_size(2, 10)}
    for at in range(len(disk.moments)):
        for mode in MODES:
            for _ in range(repeats[mode]):
                yield at, mode, disk.after_cut(at, mode, out, chance)


def save(folder: Path, step: int, keep_last_n: int | None = None) -> None:
    torch.manual_seed(step)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    progress = resume.Progress(step=step)
    identity = resume.Identity(run="the same")
    resume.save(folder, WORLD, model, optimizer, None, progress, keep_last_n, identity)


def test_a_save(tmp_path: Path) -> None:
    root = tmp_path / "disk"
    root.mkdir()
    with recorded(root) as disk:
        for step in (2, 4, 6):
            save(root / "out", step, keep_last_n=2)
        save(root / "out", 6)  # over itself
    assert len(disk.moments) > 40
    found: list[int] = []
    returned = dict.fromkeys(MODES, 0)
    for at, mode, folder in cuts(disk, tmp_path / "after"):
        clean(folder / "out")
        last = resume.find(folder / "out", True)  # an error would be a mixture
        number = 0 if last is None else int(last.name.removeprefix("step_"))
        # What a save has returned is never lost: a later moment finds no earlier step.
        assert number >= returned[mode] or mode == "random", (at, mode)
        returned[mode] = max(number, returned[mode])
        found.append(number)
    assert set(found) == {0, 2, 4, 6} and set(returned.values()) == {6}


def check_export(tmp_path: Path, export: Callable[[Path, int], None]) -> int:
    """Export twice, cut the power everywhere; returns the number of cuts."""
    root = tmp_path / "disk"
    root.mkdir()
    for number in (1, 2):
        export(tmp_path / f"state_{number}/model", number)
    states = [
        {path.name: path.read_bytes() for path in (tmp_path / f"state_{number}/model").iterdir()}
        for number in (1, 2)
    ]
    with recorded(root) as disk:
        for number in (1, 2):
            export(root / "out/model", number)
    returned = dict.fromkeys(MODES, -1)
    count = 0
    for at, mode, folder in cuts(disk, tmp_path / "after"):
        clean(folder / "out")
        model = folder / "out/model"
        content = {path.name: path.read_bytes() for path in model.iterdir()} if model.is_dir() else None
        assert content is None or content in states, (at, mode, content and content.keys())
        now = -1 if content is None else states.index(content)
        assert now >= returned[mode] or mode == "random", (at, mode)
        returned[mode] = max(returned[mode], now)
        count += 1
    assert set(returned.values()) == {1} and content == states[1]
    return count


def test_an_export(tmp_path: Path) -> None:
    def export(folder: Path, number: int) -> None:
        write_model(folder, {"weight": torch.full((4, 4), float(number))})

    assert check_export(tmp_path, export) > 50


@pytest.mark.campaign
def test_an_export_of_a_whole_checkpoint(tmp_path: Path, tiny_folder: Path) -> None:
    """With tokenizer, template and processor files, some of which are not written by Python's `open`."""
    from torchtune_qwenvl import load_model

    model = load_model(tiny_folder)

    def export(folder: Path, number: int) -> None:
        with torch.no_grad():
            model.decoder.norm.scale.fill_(number)
        save_model(model, folder, tiny_folder)

    assert check_export(tmp_path, export) > 100


def test_the_disk_forgets_what_was_not_fsynced(tmp_path: Path) -> None:
    """The replay itself: without an fsync a file is empty or gone."""
    root = tmp_path / "disk"
    root.mkdir()
    with recorded(root) as disk:
        (root / "a").write_text("old")
        (root / "a").rename(root / "b")
        shutil.rmtree(root / "nothing", ignore_errors=True)
    end, chance = len(disk.moments) - 1, random.Random(0)
    assert not any(disk.after_cut(end, "synced", tmp_path / "x", chance).iterdir())
    assert (disk.after_cut(end, "journal", tmp_path / "x", chance) / "b").read_text() == ""
