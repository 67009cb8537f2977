"""Savers of memory and time change neither losses nor gradients; 8-bit states resume as they were."""

import shutil
from pathlib import Path

import pytest
import torch
from launch import Run, run
from safetensors.torch import load_file

# Images and text, padded, and a rate that changes with every step.
STEPS = (
    "optimizer.weight_decay=0.1",
    "lr_scheduler=torchtune.training.get_cosine_schedule_with_warmup",
    "lr_scheduler.num_warmup_steps=2",
)
RECOMPUTED = ("activation_checkpointing.encoder=true", "activation_checkpointing.decoder=true")
EIGHT_BIT = ("optimizer=torchao.optim.AdamW8bit", "optimizer.lr=1e-3")


@pytest.fixture(scope="module")
def reference(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Four steps without any saver."""
    finished = run(tmp_path_factory.mktemp("plain") / "out", *STEPS, config=config)
    assert finished.codes == [0], finished.printed
    return finished


def assert_same(ours: Run, reference: Run) -> None:
    assert set(ours.codes) == {0}, ours.printed
    for metric in ("loss", "grad_norm", "lr_decoder"):
        expected = [float(value) for value in reference.values(metric).values()]
        assert len(expected) == 4
        assert [float(value) for value in ours.values(metric).values()] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("overrides", "processes"),
    [
        (("optimizer_in_bwd=true",), 1),
        (("optimizer_in_bwd=true", "batch_size=1"), 2),
        ((*RECOMPUTED, "activation_offloading=true"), 1),
        ((*RECOMPUTED, "activation_offloading=true", "optimizer_in_bwd=true", "padding_free=true"), 1),
    ],
    ids=["optimizer in backward", "on two ranks", "offloading", "together"],
)
def test_same_losses(
    reference: Run, config: Path, tmp_path: Path, overrides: tuple[str, ...], processes: int
) -> None:
    assert_same(run(tmp_path / "out", *STEPS, *overrides, config=config, processes=processes), reference)


@pytest.mark.parametrize(
    ("backend", "overrides", "processes"),
    [
        ("eager", (*RECOMPUTED, "batch_size=1", "optimizer_in_bwd=true"), 2),
        pytest.param(
            "inductor",
            (),
            1,
            marks=pytest.mark.skipif(
                shutil.which("g++") is None, reason="torch's compiler needs one for C++"
            ),
        ),
    ],
    ids=["checkpointed on two ranks", "inductor"],
)
def test_same_losses_compiled(
    reference: Run, config: Path, tmp_path: Path, backend: str, overrides: tuple[str, ...], processes: int
) -> None:
    environment = {"TORCH_COMPILE_BACKEND": backend}
    overrides = (*STEPS, *overrides, "compile=true")
    ours = run(tmp_path / "out", *overrides, config=config, processes=processes, environment=environment)
    assert_same(ours, reference)


@pytest.mark.parametrize(
    ("overrides", "processes"),
    [(EIGHT_BIT, 1), (EIGHT_BIT, 2), ((*EIGHT_BIT, "optimizer_in_bwd=true"), 1)],
    ids=["8 bits", "on two ranks", "in backward"],
)
def test_resumed_to_the_last_bit(
    reference: Run, config: Path, tmp_path: Path, overrides: tuple[str, ...], processes: int
) -> None:
    overrides = (*STEPS[1:], *overrides, "save_every_n_steps=2", f"batch_size={2 // processes}")
    whole = run(tmp_path / "whole", *overrides, config=config, processes=processes)
    state = torch.load(whole.output_dir / "step_2" / "rank_0.pt", weights_only=True)["optimizer"]
    by_parameter = state["state"] if "state" in state else next(iter(state.values()))["state"]
    first = next(iter(by_parameter.values()))
    assert type(first["exp_avg"]).__name__ == "OptimState8bit"
    # 8 bits follow 32 as far as they can.
    assert float(whole.values("loss")[4]) == pytest.approx(float(reference.values("loss")[4]), rel=2e-2)
    resume = f"resume={whole.output_dir}/step_2"
    resumed = run(tmp_path / "resumed", *overrides, resume, config=config, processes=processes)
    assert set(resumed.codes) == {0}, resumed.printed
    assert resumed.values("loss") == {s: v for s, v in whole.values("loss").items() if s > 2}
    weights = [load_file(done.output_dir / "model" / "model.safetensors") for done in (whole, resumed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_what_does_not_belong_together_is_said_at_once(config: Path, tmp_path: Path) -> None:
    failed = run(tmp_path / "out", "optimizer_in_bwd=true", "clip_grad_norm=1.0", config=config)
    assert (
        failed.codes == [1]
        and "ValueError: The config combines settings that exclude each other" in failed.printed
    )
    assert "optimizer_in_bwd with clip_grad_norm: the norm of all gradients" in failed.printed
    fused = run(tmp_path / "fused", *EIGHT_BIT, "optimizer.fused=true", config=config)
    assert fused.codes == [1] and "torchao.optim.AdamW8bit has no such argument" in fused.printed


def test_profiler_writes_a_trace(config: Path, tmp_path: Path) -> None:
    schedule = ("wait", "warmup", "active")
    short = [f"profiler.{name}_steps=1" for name in schedule]
    done = run(tmp_path / "out", "profiler.enabled=true", *short, config=config)
    assert done.codes == [0], done.printed
    (trace,) = (tmp_path / "out" / "profiling").glob("iteration_3/*.json.gz")
    assert trace.stat().st_size > 1000
