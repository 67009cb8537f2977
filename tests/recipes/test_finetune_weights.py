"""Answers with weights: the same step on one process or two, in one padded batch or several packed ones."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import Run, run
from omegaconf import OmegaConf

from torchtune_qwenvl import load_model, load_transform
from torchtune_qwenvl.data import collate, vision_chat_dataset

STEP = ("optimizer=torch.optim.SGD", "optimizer.lr=1e-3", "max_steps_per_epoch=1", "shuffle=false")
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
    one = figures(run(tmp_path / "a", *STEP, "batch_size=6", config=weighted))
    assert one[0] == pytest.approx((loss / total).item(), rel=5e-6)
    cut = ("batch_size=1", "pack_to=100", "gradient_accumulation_steps=4")
    assert figures(run(tmp_path / "b", *STEP, *cut, config=weighted, processes=2)) == pytest.approx(
        one, rel=1e-5
    )
