"""Qwen3.5 with its prediction layers through the recipe: packed, recomputed, resumed, on two ranks."""

from pathlib import Path

import pytest
import torch
from hybrid.published import save_published_folder
from launch import LORA, Run, run
from safetensors.torch import load_file

STEPS = (
    "model.mtp_trainable=true",
    "model.mtp_loss_weight=0.3",
    "pack_to=300",
    "batch_size=1",
    "activation_checkpointing.encoder=true",
    "activation_checkpointing.decoder=true",
    "save_every_n_steps=1",
    "max_steps_per_epoch=3",
)


@pytest.fixture(scope="module")
def hybrid(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a run of Qwen3.5 on the same conversations."""
    folder = tmp_path_factory.mktemp("hybrid")
    save_published_folder(folder / "checkpoint", "qwen3_5")
    text = config.read_text().replace(f"{config.parent}/checkpoint", f"{folder}/checkpoint")
    (folder / "run.yaml").write_text(text.replace("qwen2_5_vl", "qwen3_5"))
    return folder / "run.yaml"


def weights(finished: Run) -> dict[str, torch.Tensor]:
    return load_file(finished.output_dir / "model" / "model.safetensors")


def test_killed_and_resumed_to_the_last_bit(hybrid: Path, tmp_path: Path) -> None:
    """Adapters in the delta nets, and prediction layers that train fully, whose loss is logged apart."""
    steps = (*STEPS, *LORA)
    whole = run(tmp_path / "whole", *steps, config=hybrid)
    assert whole.codes == [0], whole.printed
    assert set(whole.values("mtp_loss")) == {1, 2, 3}
    assert all(float(value) > 0 for value in whole.values("mtp_loss").values())
    killed = run(tmp_path / "out", *steps, config=hybrid, kill_at="step 3")
    assert killed.codes == [-9]
    resumed = run(tmp_path / "out", *steps, "resume=true", config=hybrid)
    assert resumed.codes == [0], resumed.printed
    for metric in ("loss", "mtp_loss", "grad_norm"):
        assert resumed.values(metric) == whole.values(metric)
    before = load_file(hybrid.parent / "checkpoint" / "model.safetensors")
    after, again = weights(whole), weights(resumed)
    assert before.keys() == after.keys() == again.keys()
    assert all(torch.equal(after[name], again[name]) for name in after)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    predicting = {name for name in before if name.startswith("mtp.")}
    assert predicting and predicting <= moved
    assert any(".linear_attn.in_proj_qkv." in name for name in moved)
    frozen = ("A_log", "conv1d", "in_proj_a", "embed_tokens")
    assert not any(part in name for name in moved for part in frozen)


def test_two_ranks_take_the_steps_of_one(hybrid: Path, tmp_path: Path) -> None:
    """Everything trains, delta nets and prediction layers sharded; one rank may have no image or no label."""
    steps = [step for step in STEPS if not step.startswith("pack_to")]
    steps += ["shuffle=false", "optimizer=torch.optim.SGD", "optimizer.lr=1e-3"]
    one = run(tmp_path / "one", *steps, "batch_size=2", config=hybrid)
    two = run(tmp_path / "two", *steps, "padding_free=true", config=hybrid, processes=2)
    assert one.codes + two.codes == [0] * 3, one.printed + two.printed
    for metric in ("loss", "mtp_loss", "grad_norm"):
        expected = [float(value) for value in one.values(metric).values()]
        assert [float(value) for value in two.values(metric).values()] == pytest.approx(expected, rel=1e-4)
    for name, weight in weights(one).items():
        torch.testing.assert_close(weights(two)[name], weight, rtol=1e-4, atol=1e-5)
