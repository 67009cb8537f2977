"""Loss and gradients do not depend on how a step is cut into processes and micro-batches."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import Run, run
from omegaconf import OmegaConf
from safetensors.torch import load_file

from torchtune_qwenvl import load_model, load_transform
from torchtune_qwenvl.data import collate, vision_chat_dataset

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


WEIGHTED_STEP = ("optimizer=torch.optim.SGD", "optimizer.lr=1e-3", "max_steps_per_epoch=1", "shuffle=false")
# In sum below 1 over a step, so that a divisor of at least 1 would show.
WEIGHTS = (0.002, 0, 0.001, 0.0005, 0.01, 0, 0.003, 0.0001)


@pytest.fixture(scope="module")
def weighted(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config with eight of its samples, whose answers have weights."""
    rows: list[dict[str, Any]] = json.loads((config.parent / "data.json").read_text())[:8]
    good = []
    for row, weight in zip(rows, WEIGHTS, strict=True):
        extra = [
            {"role": "user", "content": "And?"},
            {"role": "assistant", "content": "No.", "loss": weight / 2},
        ]
        row["messages"][-1]["weight"] = weight
        good += [{"messages": row["messages"] + extra}] if weight else []
    path = tmp_path_factory.mktemp("weighted") / "run.yaml"
    cfg = OmegaConf.load(config)
    cfg.dataset |= {"source": str(path.with_name("data.json")), "image_root": str(config.parent)}
    path.with_name("data.json").write_text(json.dumps(good))
    OmegaConf.save(cfg, path)
    return path


def figures(finished: Run) -> tuple[float, float]:
    assert set(finished.codes) == {0}, finished.printed
    return tuple(float(finished.values(name)[1]) for name in ("loss", "grad_norm"))  # type: ignore[return-value]


def test_the_step_is_that_of_the_weighted_mean(weighted: Path, tmp_path: Path) -> None:
    cfg = OmegaConf.load(weighted)
    transform = load_transform(cfg.checkpoint_dir, dtype="uint8")
    dataset = vision_chat_dataset(transform, source=cfg.dataset.source, image_root=cfg.dataset.image_root)
    with torch.no_grad():
        loss, total = load_model(cfg.checkpoint_dir)(
            **collate([dataset[i] for i in range(6)], transform.pad_id)
        )
    assert 0 < total < 0.5
    one = figures(run(tmp_path / "a", *WEIGHTED_STEP, "batch_size=6", config=weighted))
    assert one[0] == pytest.approx((loss / total).item(), rel=5e-6)
    cut = ("batch_size=1", "pack_to=150", "gradient_accumulation_steps=4")
    assert figures(run(tmp_path / "b", *WEIGHTED_STEP, *cut, config=weighted, processes=2)) == pytest.approx(
        one, rel=1e-5
    )
