"""NaN and infinity stop a run before the optimizer's step; nothing that holds them is written."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from launch import run
from safetensors.torch import load_file, save_file

from torchtune_qwenvl import load_model, save_model

SGD = ("optimizer=torch.optim.SGD", "shuffle=false", "save_every_n_steps=1")
WEIGHT = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def broken(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with one NaN in a weight."""
    folder = tmp_path_factory.mktemp("nan") / "checkpoint"
    shutil.copytree(config.parent / "checkpoint", folder)
    weights = load_file(folder / "model.safetensors")
    weights[WEIGHT] = weights[WEIGHT].clone()
    weights[WEIGHT][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_diverges_stops(config: Path, tmp_path: Path, processes: int) -> None:
    stopped = run(
        tmp_path / "out", *SGD, "optimizer.lr=1e30", "keep_last_n=1", config=config, processes=processes
    )
    assert stopped.codes == [1] * processes
    said = re.search(r"ValueError: (step 2: loss nan, .*)", stopped.printed)
    assert said, stopped.printed
    rows = range(2, 4) if processes == 1 else range(4, 8)
    for row in rows:
        assert f"{config.parent}/data.json, sample {row} (from 0" in said[1]
    assert (
        "The optimizer has not stepped." in said[1]
        and f"last saved state is {stopped.output_dir}/step_1" in said[1]
    )
    assert [path.name for path in stopped.output_dir.glob("step_*")] == ["step_1"]
    assert not (stopped.output_dir / "model").exists()
    saved = torch.load(stopped.output_dir / "step_1/rank_0.pt", weights_only=True)["parameters"]
    assert all(weight.isfinite().all() for weight in saved.values())


@pytest.mark.parametrize("more", [(), ("optimizer_in_bwd=true",)], ids=["", "in_bwd"])
def test_a_broken_weight_is_named(config: Path, broken: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    overrides = (f"checkpoint_dir={broken}", "model.decoder_trainable=frozen", *more)
    stopped = run(tmp_path / "out", *SGD, *overrides, "optimizer.lr=1e-3", config=config)
    assert stopped.codes == [1] and "step 1: loss nan" in stopped.printed
    assert (
        "1 tensors of the model held NaN or infinity already, 'decoder.layers.0.mlp.w2.weight'"
        in stopped.printed
    )
    assert "No state was saved before" in stopped.printed and not list(tmp_path.glob("out/step_*"))


def test_no_folder_with_nan_is_written(config: Path, tmp_path: Path) -> None:
    folder = config.parent / "checkpoint"
    model = load_model(folder)
    with torch.no_grad():
        model.decoder.layers[1].mlp.w1.weight[0, 0] = float("inf")
    with pytest.raises(ValueError, match=r"layers.1.mlp.gate_proj.weight.* holds NaN or infinity"):
        save_model(model, tmp_path / "out", source=folder)
    assert not list(tmp_path.iterdir())
