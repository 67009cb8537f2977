"""Runs that are resumed with other settings: rates, schedules, batches and epochs do what they say."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.mini_run import COSINE, MiniRun, Rows

from torchtune_qwenvl.data.loader import Batch

SAVING = ("save_every_n_steps=1", "keep_last_n=null", "epochs=2")
ROWS = Counter(tuple(Rows(27)[i]["tokens"]) for i in range(27))


class Noting(MiniRun):
    """Notes what it reads in each epoch, and stops when it is asked to."""

    def __init__(self, *arguments: Any, stop_after: int | None = None) -> None:
        super().__init__(*arguments)
        self.stop_after = stop_after
        self.seen: dict[int, list[int]] = {}

    def loss_of(self, batch: Batch) -> Any:
        self.seen.setdefault(self.progress.epoch, []).extend(batch.inputs["tokens"].tolist())
        return super().loss_of(batch)

    def step(self, batches: list[Batch]) -> Any:
        if self.progress.step == self.stop_after:
            raise InterruptedError
        return super().step(batches)


def go(out: Path, *overrides: str, stop_after: int | None = None) -> Noting:
    run = Noting(out, *SAVING, *overrides, stop_after=stop_after)
    run.setup()
    try:
        run.train()
        run.finish()
    except InterruptedError:
        assert run.lock is not None
        run.lock.release()
    return run


def rates(out: Path) -> dict[int, float]:
    from torchtune_qwenvl.training.watch.history import read_curves

    return dict(read_curves(out)["lr_decoder"])


BATCHES = (
    ("batch_size=2",),
    ("batch_size=7",),
    ("gradient_accumulation_steps=3",),
    ("batch_size=2", "gradient_accumulation_steps=2"),
    ("pack_to=30", "batch_size=1"),
    ("batch_tokens=40",),
    ("num_workers=1",),
)


@pytest.mark.parametrize("before", [(), ("pack_to=25", "batch_size=1")], ids=["plain", "packed"])
@pytest.mark.parametrize("now", BATCHES, ids=" ".join)
def test_every_sample_once_an_epoch(tmp_path: Path, before: tuple[str, ...], now: tuple[str, ...]) -> None:
    first = go(tmp_path / "out", *before, stop_after=3)
    resumed = go(tmp_path / "out", *now, "resume=true")
    tokens = Counter(token for row, times in ROWS.items() for token in row * times)
    assert Counter(first.seen[0]) + Counter(resumed.seen[0]) == tokens
    assert Counter(resumed.seen[1]) == tokens and set(resumed.seen) == {0, 1}
    assert resumed.progress.step == resumed.total_steps


def test_other_rates_and_schedules(tmp_path: Path) -> None:
    go(tmp_path / "out", *COSINE, stop_after=5)
    before = rates(tmp_path / "out")
    go(tmp_path / "out", *COSINE, "optimizer.lr=1e-3", "resume=true")
    go(tmp_path / "always", *COSINE, "optimizer.lr=1e-3")
    now, always = rates(tmp_path / "out"), rates(tmp_path / "always")
    assert {step: rate for step, rate in now.items() if step <= 5} == before
    assert {s: r for s, r in now.items() if s > 5} == {s: r for s, r in always.items() if s > 5}
    assert before[5] != always[5]


def test_a_schedule_goes_and_comes(tmp_path: Path) -> None:
    go(tmp_path / "out", *COSINE, stop_after=5)
    go(tmp_path / "out", "resume=true", stop_after=8)
    go(tmp_path / "out", *COSINE, "resume=true")
    go(tmp_path / "always", *COSINE)
    now, always = rates(tmp_path / "out"), rates(tmp_path / "always")
    assert [now[step] for step in (6, 7, 8)] == [1e-5] * 3
    assert all(now[step] == always[step] for step in always if not 6 <= step <= 8)


def test_more_and_fewer_epochs(tmp_path: Path) -> None:
    go(tmp_path / "out", "batch_size=9")
    assert max(rates(tmp_path / "out")) == 6
    longer = go(tmp_path / "out", "batch_size=9", "resume=true", "epochs=3")
    assert max(rates(tmp_path / "out")) == 9 and set(longer.seen) == {2}
    capped = go(tmp_path / "out", "batch_size=9", "resume=true", "epochs=4", "max_steps_per_epoch=2")
    assert max(rates(tmp_path / "out")) == 11 and set(capped.seen) == {3}
    assert not go(tmp_path / "out", "batch_size=9", "resume=true", "epochs=1").seen


def test_an_earlier_step_and_other_steps_after_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    go(out, "batch_size=9")
    go(out, "batch_size=9", f"resume={out}/step_2", "optimizer.weight_decay=0.5", stop_after=4)
    names = sorted(path.name for path in out.glob("step_*"))
    assert names == ["step_1", "step_2", "step_3", "step_4", *(f"step_{n}.aside" for n in (4, 5, 6))]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=1", "seed: 0 in that run, 1 now"),
        ("shuffle=false", "shuffle: True in that run, False now"),
        ("optimizer._component_=torch.optim.SGD", "optimizer._component_: torch.optim.AdamW in that run"),
        ("model.lora_rank=4", "model.lora_rank: not set in that run, 4 now"),
    ],
)
def test_what_cannot_be_honoured_is_named_before_anything_is_built(
    tmp_path: Path, override: str, message: str
) -> None:
    torch.manual_seed(0)
    go(tmp_path, "batch_size=9", stop_after=1)
    run = Noting(tmp_path, *SAVING, "batch_size=9", "resume=true", override)
    with pytest.raises(ValueError, match=message):
        run.setup()
    assert not hasattr(run, "model")
