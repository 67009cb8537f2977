"""Loss and gradients do not depend on how a step is cut into processes and micro-batches."""

import json
from pathlib import Path

import pytest
import torch
from launch import Run, run
from safetensors.torch import load_file

# One step of plain SGD moves the weights by the gradient times the rate, large against the weights' rounding.
RATE = 1e3
ONE_STEP = (
    "optimizer=torch.optim.SGD",
    f"optimizer.lr={RATE}",
    "max_steps_per_epoch=1",
    "shuffle=false",
)


def gradients(finished: Run, checkpoint: Path) -> dict[str, torch.Tensor]:
    assert finished.codes == [0] * len(finished.codes), finished.printed
    before = load_file(checkpoint / "model.safetensors")
    after = load_file(finished.output_dir / "model" / "model.safetensors")
    return {name: (before[name] - after[name]).double() / RATE for name in before}


@pytest.fixture(scope="module")
def reference(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One process with eight samples per batch."""
    folder = tmp_path_factory.mktemp("one") / "out"
    return run(folder, *ONE_STEP, "batch_size=8", config=config)


@pytest.mark.parametrize(
    ("processes", "overrides"),
    [
        (1, ("batch_size=2", "gradient_accumulation_steps=4")),
        # Rank 0 gets the rows with images, rank 1 those of text only.
        (2, ("batch_size=4",)),
        (2, ("batch_size=1", "gradient_accumulation_steps=4", "activation_checkpointing.encoder=true")),
    ],
    ids=["accumulated", "two ranks", "both"],
)
def test_loss_and_gradients(
    reference: Run, config: Path, tmp_path: Path, processes: int, overrides: tuple[str, ...]
) -> None:
    ours = run(tmp_path / "out", *ONE_STEP, *overrides, config=config, processes=processes)
    expected = gradients(reference, config.parent / "checkpoint")
    got = gradients(ours, config.parent / "checkpoint")
    for name, gradient in expected.items():
        assert (got[name] - gradient).norm() <= 1e-5 * gradient.norm(), name
    for metric in ("loss", "grad_norm"):
        value = float(reference.values(metric)[1])
        assert float(ours.values(metric)[1]) == pytest.approx(value, rel=1e-5)


def test_one_rank_of_two_has_no_images(config: Path) -> None:
    rows = json.loads((config.parent / "data.json").read_text())
    has_image = [isinstance(row["messages"][0]["content"], list) for row in rows]
    assert all(has_image[0::2]) and not any(has_image[1::2])
