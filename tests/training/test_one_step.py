"""A step that must not count leaves weights, momentum and schedule exactly as they were."""

import math
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from torchtune_qwenvl.data.loader import Batch
from torchtune_qwenvl.distributed import World
from torchtune_qwenvl.training.one_step import TakesSteps
from torchtune_qwenvl.training.resume import Progress
from torchtune_qwenvl.training.step.optim import build_optimizer, build_optimizer_in_bwd, build_scheduler
from torchtune_qwenvl.training.step.parts import GradientCheck
from torchtune_qwenvl.training.watch.metrics import Work

ADAM = OmegaConf.create({"_component_": "torch.optim.AdamW", "lr": 0.1, "weight_decay": 0.1})
HALVED = OmegaConf.create({"_component_": "torch.optim.lr_scheduler.ExponentialLR", "gamma": 0.5})


class Line(TakesSteps):
    """Least squares by a linear layer."""

    def __init__(self, on_nonfinite: str, in_bwd: bool, output_dir: Path) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
        self.world, self.output_dir, self.progress = World(torch.device("cpu")), output_dir, Progress()
        self.cfg = OmegaConf.create({"clip_grad_norm": None, "on_nonfinite": on_nonfinite})
        parts = {"decoder": dict(self.model.named_parameters())}
        build = build_optimizer_in_bwd if in_bwd else build_optimizer
        self.optimizer = build(ADAM, parts, {"decoder": 0.1})
        self.scheduler = build_scheduler(HALVED, self.optimizer, 9)
        self.check_gradients = GradientCheck(parts)

    def work_of(self, batch: Batch) -> Work:
        return Work(labelled=batch.samples, samples=batch.samples)

    def loss_of(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return self.model(batch.inputs["x"]).square().sum() * bool(batch.samples), {}

    def state(self) -> list:
        optimizer = self.optimizer.state_dict()
        return [self.model.state_dict(), optimizer, self.scheduler.state_dict()]


def batch(seed: int, samples: int = 4, value: float | None = None) -> Batch:
    x = torch.randn(max(samples, 1), 3, generator=torch.Generator().manual_seed(seed))
    if value is not None:
        x[1, 2] = value
    return Batch({"x": x}, samples, 0, places=tuple(f"a.json, sample {seed}.{i}" for i in range(samples)))


def equal(one, other) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize("in_bwd", [False, True])
def test_a_step_without_samples_changes_nothing(tmp_path: Path, in_bwd: bool) -> None:
    line, same = Line("raise", in_bwd, tmp_path), Line("raise", in_bwd, tmp_path)
    for seed in range(3):
        line.step([batch(seed)])
        same.step([batch(seed)])
        empty = line.step([batch(9, samples=0)])
        assert not empty.taken and equal(line.state(), same.state())
    line.step([batch(5)])
    assert not equal(line.state(), same.state())  # it goes on


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])
def test_a_skipped_step_changes_nothing(tmp_path: Path, value: float) -> None:
    line, same = Line("skip", False, tmp_path), Line("skip", False, tmp_path)
    for seed in range(3):
        line.step([batch(seed)])
        same.step([batch(seed)])
        skipped = line.step([batch(7), batch(8, value=value)])
        assert not skipped.taken and skipped.work.labelled == 8 and equal(line.state(), same.state())
    assert line.step([batch(5)]).taken


@pytest.mark.parametrize("in_bwd", [False, True])
def test_the_error_names_step_samples_and_tensor(tmp_path: Path, in_bwd: bool) -> None:
    line = Line("raise", in_bwd, tmp_path)
    line.step([batch(1)])
    line.progress.step = 1
    with pytest.raises(
        ValueError, match=r"step 2: loss nan.*4 of 4 trained tensors are not, '0\.weight' first"
    ) as e:
        line.step([batch(7), batch(8, value=math.nan)])
    assert "a.json, sample 8.0; a.json, sample 8.1; a.json, sample 8.2; a.json, sample 8.3." in str(e.value)
    assert "sample 7" not in str(e.value) and "No state was saved before" in str(e.value)
    assert ("has not stepped" in str(e.value)) != in_bwd
    with torch.no_grad():
        line.model[1].bias[0] = math.inf
    (tmp_path / "step_4").mkdir()
    (tmp_path / "step_4/run.json").write_text("{}")
    if not in_bwd:
        with pytest.raises(
            ValueError, match=r"1 tensors of the model held NaN .* '1\.bias'.*state is .*step_4\."
        ):
            line.step([batch(7)])
