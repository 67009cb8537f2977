"""Ctrl-C and SIGTERM: the step is finished and saved, one line says how to go on, and nothing is lost."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faults.campaign import campaign_size
from launch import run

from torchtune_qwenvl.training.stopping import Signals, Stopped
from torchtune_qwenvl.training.watch.history import read_curves


@pytest.fixture(scope="module")
def whole(config: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, float]]:
    """The losses of a run that nobody stops."""
    done = run(tmp_path_factory.mktemp("whole") / "out", config=config)
    assert done.codes == [0], done.printed
    return read_curves(done.output_dir)["loss"]


@pytest.mark.parametrize(
    ("name", "code", "processes"), [("SIGINT", 130, 1), ("SIGTERM", 143, 1), ("SIGTERM", 143, 2)]
)
def test_a_signal_to_one_rank_stops_all_after_the_step(
    config: Path, tmp_path: Path, whole: list, name: str, code: int, processes: int
) -> None:
    batch = f"batch_size={2 // processes}"
    chosen = processes - 1
    common = {"config": config, "processes": processes}
    stopped = run(tmp_path / "out", batch, "num_workers=1", kill_at=f"{name} {chosen} step 2", **common)
    assert stopped.codes == [code] * processes and "Traceback" not in stopped.printed, stopped.printed
    lines = [line for line in stopped.printed.splitlines() if "stopped by" in line]
    assert lines == [
        f"stopped by {name} after step 2 of 4. The last saved state is {stopped.output_dir}/step_2. "
        "Add resume=true to the command to go on."
    ]
    resumed = run(tmp_path / "out", batch, "resume=true", **common)
    assert resumed.codes == [0] * processes, resumed.printed
    losses = read_curves(resumed.output_dir)["loss"]
    assert [step for step, _ in losses] == [1, 2, 3, 4]
    assert [loss for _, loss in losses] == pytest.approx([loss for _, loss in whole], rel=1e-5)


def test_without_saving(config: Path, tmp_path: Path) -> None:
    stopped = run(tmp_path / "out", "save_on_signal=false", config=config, kill_at="SIGTERM 0 step 2")
    assert stopped.codes == [143] and not list(tmp_path.glob("out/step_*"))
    assert "after step 2 of 4. No state was saved before." in stopped.printed


def test_signals_outside_of_training_stop_at_once() -> None:
    handler = signal.getsignal(signal.SIGTERM)
    with Signals().caught() as signals, pytest.raises(Stopped) as stop:
        signal.raise_signal(signal.SIGTERM)
    assert (stop.value.exit_code, signals.received) == (143, signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.parametrize("forgiving", [False, True])
def test_a_second_signal(forgiving: bool) -> None:
    with Signals(forgiving).caught() as signals, signals.noted():
        signal.raise_signal(signal.SIGINT)
        assert signals.received == signal.SIGINT
        if forgiving:
            signal.raise_signal(signal.SIGINT)
        else:
            with pytest.raises(Stopped, match="stopped by SIGINT in the middle of a step"):
                signal.raise_signal(signal.SIGINT)


@pytest.mark.skipif(campaign_size(0, 1) == 0, reason="starts torchrun; CAMPAIGN=1 runs it")
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_torchrun(config: Path, tmp_path: Path, name: str, code: int) -> None:
    """The whole group gets the signal, as from a terminal; data workers too."""
    out, printed = tmp_path / "out", tmp_path / "printed.txt"
    argv = [sys.executable, "-m", "torchtune_qwenvl.cli.main", "run", "--nproc_per_node", "2", "finetune"]
    argv += ["--config", str(config), f"output_dir={out}", "device=cpu", "num_workers=1", "batch_size=1"]
    with printed.open("w") as file:
        process = subprocess.Popen(
            [*argv, "epochs=500", "max_steps_per_epoch=null"],
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
        while len(read_curves(out).get("loss", ())) < 5 and process.poll() is None:
            time.sleep(0.2)
        began = time.monotonic()
        process.send_signal(signal.Signals[name])
        assert process.wait(60) == code, printed.read_text()
    assert time.monotonic() - began < 30
    text = printed.read_text()
    saved = sorted(out.glob("step_*"))
    assert len(saved) == 1 and "Traceback" not in text, text
    assert text.count(f"The last saved state is {saved[0]}. Add resume=true") == 1
