"""Runs that are killed at any operation on files, or at any moment, go on and end with the same bytes.

CAMPAIGN=1 pytest tests/campaigns/test_kills.py     about 480 kills of all variants
"""

import random
import shutil
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from faults.campaign import campaign_seed, campaign_size
from faults.mini_run import VARIANTS, finished, operations, printed, result, run, start

SMALL = ("full", "packed", "stream on two")  # of which the suite runs a few kills


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """name -> folder and result of a run that nothing has disturbed."""

    @cache
    def of(name: str) -> tuple[Path, dict[str, Any]]:
        size, overrides = VARIANTS[name]
        out = tmp_path_factory.mktemp("whole") / "out"
        assert run(out, overrides, size) == [0] * size, printed(out)
        return out, result(out)

    return of


def point(seen: list[str], chance: random.Random) -> int:
    """An operation to die at: three of four are no writes, of which there are fewer."""
    write = chance.random() < 0.25
    return chance.choice([number for number, what in enumerate(seen, 1) if (what == "write") == write])


def check_goes_on(out: Path, name: str, expected: dict[str, Any]) -> None:
    size, overrides = VARIANTS[name]
    codes = run(out, [*overrides, "resume=true"], size)
    assert codes == [0] * size, printed(out)
    assert result(out) == expected
    left = [path.name for path in out.iterdir() if path.name.startswith(".") or ".tmp" in path.name]
    assert left == []


@pytest.mark.parametrize("name", VARIANTS)
def test_killed_at_an_operation(references: Any, tmp_path: Path, name: str) -> None:
    size, overrides = VARIANTS[name]
    count = campaign_size({1: 2, 2: 1}[size] if name in SMALL else 0, {1: 56, 2: 40}[size])
    if not count:
        pytest.skip("runs under CAMPAIGN=1")
    whole, expected = references(name)
    chance = random.Random(f"{name} {campaign_seed()}")
    for number in range(count):
        victim = chance.randrange(size)
        at = point(operations(whole, victim), chance)
        out = tmp_path / str(number)
        codes = run(out, overrides, size, victim=victim, at=at)
        assert codes[victim] == -9 and None not in codes, (number, at, printed(out))
        check_goes_on(out, name, expected)
        shutil.rmtree(out)


@pytest.mark.campaign
@pytest.mark.parametrize("name", VARIANTS)
def test_killed_at_random_moments(references: Any, tmp_path: Path, name: str) -> None:
    """Up to three times in a row, one rank or all."""
    size, overrides = VARIANTS[name]
    expected = references(name)[1]
    chance = random.Random(f"{name} {campaign_seed()}")
    begun = time.monotonic()
    run(tmp_path / "slow", overrides, size, delay=0.01)
    seconds = time.monotonic() - begun
    for number in range(6):
        out = tmp_path / str(number)
        for attempt in range(chance.randint(1, 3)):
            ranks = start(out, [*overrides, "resume=true"], size, delay=0.01)
            time.sleep(chance.uniform(0.1, seconds))
            for process in ranks if chance.random() < 0.5 else [chance.choice(ranks)]:
                process.kill()
            assert None not in finished(ranks), (number, attempt)
        check_goes_on(out, name, expected)
        shutil.rmtree(out)
