"""The classification recipe compiled, and in bf16 with what it logs of its speed."""

import shutil
from pathlib import Path

import pytest
import torch
from launch import Run, run
from safetensors.torch import load_file

from torchtune_qwenvl.checkpoints.vision_encoder import load_vision_encoder
from torchtune_qwenvl.recipes.train_vit import TrainViTRecipe, main
from torchtune_qwenvl.training.watch.flops import EncoderFlops
from torchtune_qwenvl.training.watch.history import read_curves

TINY = (
    *("model.embed_dim=32", "model.depth=2", "model.num_heads=2", "num_workers=0", "batch_size=8"),
    *("epochs=1", "max_steps_per_epoch=4", "val_share=0.05", "run_val_every_n_steps=4"),
    "lr_scheduler.num_warmup_steps=2",
)


def train(out: Path, *overrides: str, **options) -> Run:
    return run(out, *overrides, config="vit/digits", recipe="train_vit", **options)


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """In fp32, without a compiler."""
    return train(tmp_path_factory.mktemp("exact") / "out", *TINY)


@pytest.mark.parametrize(
    ("backend", "processes"),
    [
        ("eager", 2),
        pytest.param(
            "inductor",
            1,
            marks=[
                pytest.mark.campaign,
                pytest.mark.skipif(shutil.which("g++") is None, reason="torch's compiler needs one for C++"),
            ],
        ),
    ],
)
def test_same_losses_compiled(exact: Run, tmp_path: Path, backend: str, processes: int) -> None:
    options = (*TINY, "compile=true", "activation_checkpointing=true", f"batch_size={8 // processes}")
    environment = {"TORCH_COMPILE_BACKEND": backend}
    ours = train(tmp_path / "out", *options, processes=processes, environment=environment)
    assert set(ours.codes) == {0}, ours.printed
    for name in ("loss", "grad_norm", "val_loss"):
        found, expected = ([v for _, v in read_curves(r.output_dir)[name]] for r in (ours, exact))
        assert found == pytest.approx(expected, rel=2e-4), name


def test_bf16_follows_fp32_and_a_subclass_runs(exact: Run, tmp_path: Path) -> None:
    """Weights stay fp32; what a step costs is logged, and how much of a peak that is."""
    seen = []

    class MyRecipe(TrainViTRecipe):
        def step(self, batches):
            seen.append((self.autocast(), next(self.model.parameters()).dtype))
            return super().step(batches)

    out = tmp_path / "out"
    options = (*TINY, "dtype=bf16", "prepare=[]", "device_peak_tflops=1.0", f"output_dir={out}")
    main(["--config", "vit/digits", *options], recipe=MyRecipe)
    assert len(seen) == 4 and {dtype for _, dtype in seen} == {torch.float32}
    assert all(context.fast_dtype == torch.bfloat16 for context, _ in seen)
    curves, expected = read_curves(out), read_curves(exact.output_dir)
    ours, theirs = ([value for _, value in each["loss"]] for each in (curves, expected))
    assert ours == pytest.approx(theirs, rel=2e-2) and ours != theirs
    assert {w.dtype for w in load_file(out / "model/model.safetensors").values()} == {torch.float32}
    model = load_vision_encoder(out / "model").requires_grad_(True)
    flops = EncoderFlops(model)
    per_step = 8 * (flops([(1, 4, 4)], model.patch_embed.still_width) + flops.per_image)
    for (_, tflops), (_, seconds), (_, mfu) in zip(
        curves["tflops_per_device"], curves["seconds_per_step"], curves["mfu"], strict=True
    ):
        assert tflops * seconds * 1e12 == pytest.approx(per_step, rel=1e-3) and mfu == pytest.approx(tflops)
