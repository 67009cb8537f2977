"""Killed at any moment, a build goes on and ends with the same bytes; one writer at a time."""

import random
import time
from pathlib import Path

import pytest
from faults.campaign import campaign_size
from launch import FORKS
from stand_in import StandIn, build_and_die, write_files

from torchtune_qwenvl.vision.index import ImageIndex
from torchtune_qwenvl.vision.index.store import Store

PART = 6


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def build_in_a_process(photos: Path, out: Path, after: float, **options) -> int:
    process = FORKS.Process(target=build_and_die, args=(photos, out, after), kwargs=options)
    process.start()
    process.join(timeout=60)
    assert process.exitcode is not None
    return process.exitcode


@pytest.mark.parametrize(
    ("options", "kills"),
    [({}, 40), ({"pool": None, "factor": 2}, campaign_size(8, 40))],
    ids=["mean", "tokens"],
)
def test_forty_kills_leave_the_same_bytes(tmp_path: Path, options: dict, kills: int) -> None:
    options = {**options, "part_size": PART}
    photos = write_files(tmp_path / "photos", 48, bad=(3, 20, 21, 39, 47))
    start = time.monotonic()
    ImageIndex.build(photos, StandIn(seconds=2e-4), tmp_path / "whole", workers=0, **options)
    seconds, chance = time.monotonic() - start, random.Random(0)
    codes, sizes, builds = [], set(), 0
    places = min(5, kills // 3 + 1)  # at which a build was killed, at least
    while codes.count(-9) < kills or len(sizes) < places:
        out = tmp_path / f"out_{builds}"
        codes.append(build_in_a_process(photos, out, chance.uniform(0, seconds / 2), **options))
        if (out / "meta.json").is_file():
            sizes.add(Store.open(out).meta.rows)  # what counts is whole at any moment
        if codes[-1] == 0 or codes.count(-9) >= kills:
            if codes[-1]:
                ImageIndex.build(photos, StandIn(), out, workers=0, **options)
            assert content(out) == content(tmp_path / "whole")
            builds += 1
        assert len(codes) < 400
    assert set(codes) <= {0, -9}


def test_a_step_that_fails_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped before each step of writing, one after the other."""
    from torchtune_qwenvl.vision.index import store

    photos = write_files(tmp_path / "photos", 18, bad=(3,))
    ImageIndex.build(photos, StandIn(), tmp_path / "whole", part_size=PART, workers=0)
    steps = [0, 0]  # done, allowed

    def counted(function):
        def step(*args):
            steps[0] += 1
            if steps[0] > steps[1]:
                raise KeyboardInterrupt
            return function(*args)

        return step

    for name in ("fsync", "replace"):
        monkeypatch.setattr(store.os, name, counted(getattr(store.os, name)))
    for allowed in range(100):
        steps[:], out = [0, allowed], tmp_path / str(allowed)
        try:
            ImageIndex.build(photos, StandIn(), out, part_size=PART, workers=0)
            break
        except KeyboardInterrupt:
            steps[:] = [0, 1000]
            ImageIndex.build(photos, StandIn(), out, part_size=PART, workers=0)
            assert content(out) == content(tmp_path / "whole"), allowed
    assert 20 < allowed < 99


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    photos = write_files(tmp_path / "photos", 3)
    index = ImageIndex.build(photos, StandIn(), tmp_path / "index")
    (tmp_path / "photos/new.jpg").write_text("new")
    with index.store.locked():  # held by this process
        process = FORKS.Process(target=_refused, args=(photos, tmp_path / "index"))
        process.start()
        process.join(timeout=60)
    assert process.exitcode == 3


def _refused(photos: Path, out: Path) -> None:
    from stand_in import StandIn

    from torchtune_qwenvl.vision.index import ImageIndex

    try:
        ImageIndex.load(out).add(photos, StandIn(), workers=0)
    except ValueError as error:
        raise SystemExit(3 if "another process is writing this index" in str(error) else 4) from None
