"""A run that is killed at any point goes on as if it had never stopped, to the last bit."""

import shutil
from pathlib import Path

import pytest
from launch import LORA, Run, run

from torchtune_qwenvl.training.watch.history import read_curves

# Eight steps in two shuffled epochs; the rate changes with every step, dropout draws random numbers in all
# of them.
SAVING = (
    *LORA,
    "save_every_n_steps=2",
    "epochs=2",
    "num_workers=1",
    "lr_scheduler=torchtune.training.get_cosine_schedule_with_warmup",
    "lr_scheduler.num_warmup_steps=2",
    "gradient_accumulation_steps=2",
)


def results(finished: Run) -> list[bytes]:
    files = ("adapter/adapter_model.safetensors", "model/model.safetensors")
    return [(finished.output_dir / file).read_bytes() for file in files]


def assert_same(resumed: Run, reference: Run, first_step: int) -> None:
    assert set(resumed.codes) == {0}, resumed.printed
    for metric in ("loss", "grad_norm", "lr_decoder"):
        expected = {s: v for s, v in reference.values(metric).items() if s >= first_step}
        assert {s: v for s, v in resumed.values(metric).items() if s >= first_step} == expected
    assert results(resumed) == results(reference)


@pytest.fixture(scope="module")
def reference(request: pytest.FixtureRequest, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on some processes, without interruption."""
    size = "batch_size=2" if request.param == 1 else "batch_size=1"
    folder = tmp_path_factory.mktemp("reference") / "out"
    finished = run(folder, *SAVING, size, config=config, processes=request.param)
    assert set(finished.codes) == {0}, finished.printed
    assert len(finished.values("loss")) == 8
    return finished


@pytest.mark.parametrize(
    ("reference", "kill_at"), [(1, "step 4"), (1, "step 7"), (2, "step 5")], indirect=["reference"]
)
def test_killed_and_resumed(reference: Run, config: Path, tmp_path: Path, kill_at: str) -> None:
    processes = len(reference.codes)
    overrides = (*SAVING, "batch_size=2" if processes == 1 else "batch_size=1")
    killed = run(tmp_path / "out", *overrides, config=config, processes=processes, kill_at=kill_at)
    assert -9 in killed.codes and not (tmp_path / "out" / "model").exists()
    resumed = run(tmp_path / "out", *overrides, "resume=true", config=config, processes=processes)
    assert_same(resumed, reference, first_step=1)
    folders = sorted(path.name for path in (tmp_path / "out").glob("step_*"))
    assert folders == ["step_6", "step_8"]
    curves, whole = read_curves(tmp_path / "out"), read_curves(reference.output_dir)
    assert curves["loss"] == whole["loss"] and [step for step, _ in curves["lr_decoder"]] == [*range(1, 9)]
    assert (tmp_path / "out/curves.png").is_file()


def test_half_written_is_never_picked_up(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    killed = run(out, *SAVING, config=config, kill_at="rename")
    assert killed.codes == [-9]
    assert [path.name for path in out.glob("step_*")] == ["step_2.tmp"]
    # All its files are there, and still it is none.
    assert {path.name for path in (out / "step_2.tmp").iterdir()} == {"rank_0.pt", "run.json"}
    resumed = run(out, *SAVING, "resume=true", "max_steps_per_epoch=2", "epochs=1", config=config)
    assert resumed.codes == [0] and "2 steps, from the checkpoint" in resumed.printed
    assert [path.name for path in out.glob("step_*")] == ["step_2"]
    named = run(out, *SAVING, f"resume={out}/step_1.tmp", config=config)
    assert named.codes == [1] and "expected a finished step_N folder" in named.printed


@pytest.mark.parametrize("reference", [1], indirect=True)
def test_what_does_not_fit_is_refused(reference: Run, config: Path, tmp_path: Path) -> None:
    saved = reference.output_dir / "step_8"
    more = run(tmp_path / "a", *SAVING, f"resume={saved}", config=config, processes=2)
    assert set(more.codes) == {1} and "resume with --nproc_per_node 1" in more.printed
    without = run(tmp_path / "b", f"resume={saved}", config=config)
    assert without.codes == [1] and "model.lora_rank: 4 in that run, not set now" in without.printed
    again = run(reference.output_dir, *SAVING, config=config)
    assert again.codes == [1] and "is there from an earlier run" in again.printed


def test_saved_right_after_a_validation(config: Path, tmp_path: Path) -> None:
    """After a validation, shards are saved, not whole tensors."""
    val = ("val_dataset=torchtune_qwenvl.data.vision_chat_dataset", "val_dataset.source=${dataset.source}")
    options = (*val, "run_val_every_n_steps=1", "save_every_n_steps=1", "val_answers=0", "batch_size=1")
    out = tmp_path / "out"
    done = run(out, *options, config=config, processes=2)
    assert set(done.codes) == {0}, done.printed
    resumed = run(tmp_path / "on", *options, f"resume={out}/step_3", config=config, processes=2)
    assert set(resumed.codes) == {0}, resumed.printed
    assert resumed.values("loss")[4] == done.values("loss")[4]


@pytest.mark.parametrize("reference", [1], indirect=True)
def test_other_settings_are_used_and_said(reference: Run, config: Path, tmp_path: Path) -> None:
    """Half an epoch of 8 samples is left after step 6."""
    saved = f"resume={reference.output_dir}/step_6"
    other = ("optimizer.lr=1e-5", "gradient_accumulation_steps=1", "batch_size=1", "max_steps_per_epoch=null")
    resumed = run(tmp_path / "out", *SAVING, *other, saved, config=config)
    assert resumed.codes == [0], resumed.printed
    assert list(resumed.values("loss")) == list(range(7, 15)) and "14 steps, resumed from" in resumed.printed
    for line in ("optimizer.lr: 0.001 -> 1e-05", "batch_size: 2 -> 1", "max_steps_per_epoch: 4 -> None"):
        assert line in resumed.printed
    assert max(float(rate) for rate in resumed.values("lr_decoder").values()) <= 1e-5


@pytest.mark.parametrize("reference", [1], indirect=True)
def test_damage_and_the_last_whole_step(reference: Run, config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(reference.output_dir, out)
    (out / "step_8/rank_0.pt").write_bytes(b"")
    for wrong in ("resume=true", f"resume={out}/step_8"):
        refused = run(out, *SAVING, "batch_size=2", wrong, config=config)
        assert refused.codes == [1] and f"{out}/step_8/rank_0.pt: 0 bytes, but" in refused.printed
        assert f"resume={out}/step_6, or resume=last_whole" in refused.printed
    resumed = run(out, *SAVING, "batch_size=2", "resume=last_whole", config=config)
    assert_same(resumed, reference, first_step=1)


def test_an_export_that_cannot_be_is_known_before_the_first_step(config: Path, tmp_path: Path) -> None:
    refused = run(tmp_path / "a", "export_dtype=fp8", config=config)
    assert refused.codes == [1] and "fp8" in refused.printed and not refused.log
    out = tmp_path / "b"
    out.mkdir()
    (out / "model").mkdir()
    (out / "model/notes.txt").write_text("mine")
    refused = run(out, config=config)
    assert refused.codes == [1] and "model exists and holds no config.json" in refused.printed
    assert not refused.values("loss") and (out / "model/notes.txt").read_text() == "mine"
