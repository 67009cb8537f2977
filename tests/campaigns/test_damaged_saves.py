"""Damaged `step_N/` folders of one rank and of two: every one is refused by name, or read exactly as written.

CAMPAIGN=1 pytest tests/campaigns/test_damaged_saves.py     800 mutations
"""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.campaign import campaign_seed, campaign_size
from faults.mini_run import VARIANTS, printed, result, run

from torchtune_qwenvl.distributed import World
from torchtune_qwenvl.training import resume
from torchtune_qwenvl.training.resume.meta import META, read_meta

WORLD = World(torch.device("cpu"))


@pytest.fixture(scope="module", params=["full", "two ranks"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """Name of a variant, a finished run with all its folders, and another run that differs in its seed."""
    size, overrides = VARIANTS[request.param]
    folders = []
    for number in range(2):
        out = tmp_path_factory.mktemp("saved") / "out"
        options = [*overrides, "keep_last_n=null", f"seed={number}"]
        assert run(out, options, size) == [0] * size, printed(out)
        folders.append(out)
    return request.param, *folders


def flipped(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    changed[chance.randrange(len(changed))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def zeroed(content: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(content))
    return content[:start] + bytes(min(4096, len(content) - start)) + content[start + 4096 :]


def digit(content: bytes, chance: random.Random) -> bytes:
    """Another digit: in run.json that is another step, size or setting."""
    places = [at for at, byte in enumerate(content) if chr(byte).isdigit()]
    if not places:
        return flipped(content, chance)
    at = chance.choice(places)
    return content[:at] + str((content[at] - 47) % 10).encode() + content[at + 1 :]


MUTATIONS: tuple[Callable[[bytes, random.Random], bytes | None], ...] = (
    flipped,
    flipped,
    flipped,
    digit,
    zeroed,
    lambda content, chance: content[: chance.randrange(len(content))],
    lambda content, chance: content[:-1],
    lambda content, chance: content + b"x",
    lambda content, chance: b"",
    lambda content, chance: b"hello",
    lambda content, chance: b"[]",
    lambda content, chance: bytes(len(content)),
    lambda content, chance: None,
)


def outcome(folder: Path, whole: Path) -> str:
    """ "refused" if the error names the file, "same" if what is read is what was written."""
    try:
        assert resume.find(folder.parent, True) == folder
        meta = read_meta(folder)
    except ValueError as error:
        named = any(f"{folder.name}/{name}" in str(error) for name in ("rank_0.pt", "rank_1.pt", META))
        return "refused" if named and "step_2, or resume=last_whole" in str(error) else f"unclear: {error}"
    same = meta == read_meta(whole) and all(
        (folder / name).read_bytes() == (whole / name).read_bytes() for name in meta.files
    )
    return "same" if same else "SILENTLY WRONG"


def two_steps(whole: Path, out: Path, step: int) -> Path:
    """Copies of step_2, which stays whole, and of the folder that is to be damaged."""
    shutil.rmtree(out, ignore_errors=True)
    for name in ("step_2", f"step_{step}"):
        shutil.copytree(whole / name, out / name)
    return out / f"step_{step}"


def test_damaged_files(saved: tuple[str, Path, Path], tmp_path: Path) -> None:
    _, whole, _ = saved
    chance = random.Random(campaign_seed())
    outcomes: list[str] = []
    for _ in range(campaign_size(40, 400)):
        folder = two_steps(whole, tmp_path / "out", 6)
        file = chance.choice(sorted(folder.iterdir()))
        mutated = chance.choice(MUTATIONS)(file.read_bytes(), chance)
        if mutated is None:
            file.unlink()
        else:
            file.write_bytes(mutated)
        found = outcome(folder, whole / "step_6")
        assert found in ("refused", "same"), (file.name, found)
        outcomes.append(found)
    assert outcomes.count("refused") > 0.9 * len(outcomes)


def exchange(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


SWAPS: dict[str, Callable[[Path, Path], Any]] = {
    "a rank's file of another step": lambda f, _: shutil.copy(f.parent / "step_2/rank_0.pt", f / "rank_0.pt"),
    "run.json of another step": lambda f, _: shutil.copy(f.parent / "step_2" / META, f / META),
    "a rank's file of another run": lambda f, o: shutil.copy(o / f.name / "rank_0.pt", f / "rank_0.pt"),
    "run.json of another run": lambda f, o: shutil.copy(o / f.name / META, f / META),
    "all of another step": lambda f, _: [shutil.copy(p, f) for p in (f.parent / "step_2").iterdir()],
    "ranks exchanged": lambda f, _: exchange(f / "rank_0.pt", f / "rank_1.pt"),
    "one rank's file for both": lambda f, _: shutil.copy(f / "rank_0.pt", f / "rank_1.pt"),
}


@pytest.mark.parametrize("what", SWAPS)
def test_swapped_files(saved: tuple[str, Path, Path], tmp_path: Path, what: str) -> None:
    name, whole, other = saved
    if name == "full" and ("ranks" in what or "both" in what):
        pytest.skip("there is one rank")
    folder = two_steps(whole, tmp_path / "out", 6)
    SWAPS[what](folder, other)
    assert outcome(folder, whole / "step_6") == "refused"


def test_a_renamed_folder(saved: tuple[str, Path, Path], tmp_path: Path) -> None:
    two_steps(saved[1], tmp_path / "out", 6).rename(tmp_path / "out/step_60")
    with pytest.raises(ValueError, match=r"step_60/run\.json: of step 6: the folder has been renamed"):
        resume.find(tmp_path / "out", True)


def test_ranks_agree_and_the_last_whole_one_goes_on(saved: tuple[str, Path, Path], tmp_path: Path) -> None:
    """In whole runs: one error on all ranks, and the older folder leads to the same end."""
    name, whole, _ = saved
    size, overrides = VARIANTS[name]
    out = tmp_path / "out"
    two_steps(whole, out, 6)
    shutil.copy(whole / "metrics.jsonl", out)
    last = out / f"step_6/rank_{size - 1}.pt"
    last.write_bytes(flipped(last.read_bytes(), random.Random(1)))
    options = [*overrides, "keep_last_n=null"]
    assert run(out, [*options, "resume=true"], size) == [1] * size
    assert printed(out).count(f"ValueError: {last}: damaged") >= size
    assert run(out, [*options, "resume=last_whole"], size) == [0] * size, printed(out)
    assert result(out) == result(whole)
