"""bf16 training moves the weights as fp32 training does; without masters, at a small rate, it would not."""

from pathlib import Path

import pytest
import torch
from launch import run
from safetensors.torch import load_file

HUNDRED_STEPS = ("epochs=25", "max_steps_per_epoch=4", "optimizer.lr=1e-6", "export_dtype=fp32")


def updates(config: Path, out: Path, *overrides: str, start: torch.dtype = torch.float32) -> torch.Tensor:
    """How 100 steps at rate 1e-6 change the checkpoint's weights, flattened and cast to `start`."""
    finished = run(out, *HUNDRED_STEPS, *overrides, config=config)
    assert finished.codes == [0], finished.printed
    assert len(finished.values("loss")) == 100
    before = load_file(config.parent / "checkpoint" / "model.safetensors")
    after = load_file(out / "model" / "model.safetensors")
    return torch.cat([(after[name] - before[name].to(start)).flatten().double() for name in sorted(before)])


@pytest.fixture(scope="module")
def in_fp32(config: Path, tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    return updates(config, tmp_path_factory.mktemp("fp32") / "out", "dtype=fp32")


def test_masters(config: Path, tmp_path: Path, in_fp32: torch.Tensor) -> None:
    ours = updates(config, tmp_path / "out", "dtype=bf16")
    assert ours.abs().mean().item() == pytest.approx(in_fp32.abs().mean().item(), rel=0.05)


def test_stochastic_rounding(config: Path, tmp_path: Path, in_fp32: torch.Tensor) -> None:
    rounding = ("optimizer=torchao.optim._AdamW", "optimizer.bf16_stochastic_round=true")
    moved = updates(config, tmp_path / "out", "dtype=bf16", *rounding, start=torch.bfloat16)
    # Most weights cannot move by so little, some move by far more: right on average.
    assert (moved == 0).double().mean() > 0.5
    assert (moved @ in_fp32 / (in_fp32 @ in_fp32)).item() == pytest.approx(1, rel=0.1)
