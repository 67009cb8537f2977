"""Optimizers and schedules over a resume: to the bit as they were, or exactly as changed settings say."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, OneCycleLR, StepLR

from torchtune_qwenvl.distributed import World
from torchtune_qwenvl.training import resume
from torchtune_qwenvl.training.step.optim_in_bwd import OptimizerInBackward

WORLD = World(torch.device("cpu"))
SCHEDULES: dict[str, Callable[[Any], LRScheduler]] = {
    "lambda": lambda o: LambdaLR(o, lambda step: 1 / (1 + step)),
    "step": lambda o: StepLR(o, 3, 0.7),
    "cosine": lambda o: CosineAnnealingLR(o, 20),
    "one cycle": lambda o: OneCycleLR(o, 0.1, 20),
}


class Run:
    """Two groups, one without weight decay, on data that the step's number gives."""

    def __init__(self, schedule: str | None, **options: Any) -> None:
        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
        groups = [
            {"params": [p for p in self.model.parameters() if p.dim() > 1]},
            {"params": [p for p in self.model.parameters() if p.dim() == 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, **{"lr": 0.01, "weight_decay": 0.1, **options})
        self.scheduler = SCHEDULES[schedule](self.optimizer) if schedule else None
        self.step = 0

    def go(self, to: int) -> list[float]:
        losses = []
        while self.step < to:
            inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(self.step))
            loss = self.model(inputs).square().mean()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            if self.scheduler:
                self.scheduler.step()
            losses.append(loss.item())
            self.step += 1
        return losses

    def save(self, folder: Path, **settings: Any) -> Path:
        identity, progress = resume.Identity(settings), resume.Progress(step=self.step)
        return resume.save(
            folder, WORLD, self.model, self.optimizer, self.scheduler, progress, identity=identity
        )

    def load(self, folder: Path, **settings: Any) -> "Run":
        saved = resume.read(folder, WORLD, resume.Identity(settings))
        saved.restore(self.model, self.optimizer, self.scheduler, saved.progress())
        self.step = saved.progress().step
        return self


@pytest.mark.parametrize("schedule", [None, *SCHEDULES])
def test_nothing_changed(tmp_path: Path, schedule: str | None) -> None:
    whole = Run(schedule)
    first = Run(schedule)
    first.go(7)
    resumed = Run(schedule).load(first.save(tmp_path))
    assert resumed.go(15) == whole.go(15)[7:]
    assert torch.equal(
        torch.cat([p.flatten() for p in resumed.model.parameters()]),
        torch.cat([p.flatten() for p in whole.model.parameters()]),
    )


@pytest.mark.parametrize("schedule", [None, *SCHEDULES])
def test_a_changed_rate_and_schedule_are_those_of_a_run_that_always_had_them(
    tmp_path: Path, schedule: str | None
) -> None:
    first, always = Run("step"), Run(schedule, lr=0.05)
    first.go(7)
    always.go(7)
    old, new = (
        {"optimizer.lr": 0.01, "lr_scheduler": "step"},
        {"optimizer.lr": 0.05, "lr_scheduler": schedule},
    )
    resumed = Run(schedule, lr=0.05).load(first.save(tmp_path, **old), **new)
    for _ in range(3):
        ours, theirs = ([g["lr"] for g in run.optimizer.param_groups] for run in (resumed, always))
        assert ours == theirs
        assert [g["betas"] for g in resumed.optimizer.param_groups] == [
            g["betas"] for g in always.optimizer.param_groups
        ]
        for run in (resumed, always):
            run.go(run.step + 1)
    state = next(iter(resumed.optimizer.state.values()))
    assert state["step"] == 10  # moments and counts came along


def test_changed_weight_decay_and_nothing_else(tmp_path: Path) -> None:
    first = Run("cosine")
    first.go(7)
    folder = first.save(tmp_path, **{"optimizer.weight_decay": 0.1})
    resumed = Run("cosine", weight_decay=0.3, eps=1e-3)
    resumed.load(folder, **{"optimizer.weight_decay": 0.3})
    assert [g["weight_decay"] for g in resumed.optimizer.param_groups] == [0.3, 0.0]
    assert [g["eps"] for g in resumed.optimizer.param_groups] == [1e-8, 1e-8]  # not said to have changed
    assert [g["lr"] for g in resumed.optimizer.param_groups] == [
        g["lr"] for g in first.optimizer.param_groups
    ]


def test_one_optimizer_per_parameter(tmp_path: Path) -> None:
    def make() -> tuple[nn.Linear, OptimizerInBackward]:
        torch.manual_seed(1)
        model = nn.Linear(4, 2)
        names = {p: name for name, p in model.named_parameters()}
        return model, OptimizerInBackward(names, lambda p: torch.optim.AdamW([p], lr=0.1))

    def go(model: nn.Linear) -> float:
        loss = model(torch.ones(1, 4)).square().sum()
        loss.backward()
        return loss.item()

    model, optimizer = make()
    go(model)
    folder = resume.save(tmp_path, WORLD, model, optimizer, None, resume.Progress(step=1))
    expected = [go(model) for _ in range(3)]
    model, optimizer = make()
    resume.read(folder, WORLD).restore(model, optimizer, None)
    assert [go(model) for _ in range(3)] == expected
