"""The GPU benchmark on a CPU: the same code with tiny sizes, so that its first run on a GPU meets no typo."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
PARTS = {"resume", "kernels", "sync", "shard", "steps", "savers", "reference"}


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder from which its programs import each other."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def rehearsed(out: Path, capsys: pytest.CaptureFixture[str]) -> list[dict]:
    import gpu

    status = gpu.main(["--rehearse", "--out", str(out)])
    found = json.loads((out / "results.json").read_text())
    assert [row for row in found["rows"] if row["status"] != "ok"] == []
    assert status == 0
    assert capsys.readouterr().out.count("| ok") == len(found["rows"])
    return found["rows"]


def test_every_part_is_rehearsed(
    tmp_path: Path, benchmarks: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch.compile does nothing here: tracing takes minutes and is rehearsed by the campaign."""
    monkeypatch.setattr("torch.compile", lambda function, **options: function)
    rows = rehearsed(tmp_path, capsys)
    assert {row["part"] for row in rows} == PARTS
    assert all(row["figures"] for row in rows)
    resumed = next(row for row in rows if row["part"] == "resume")
    assert resumed["figures"]["tensors that differ"] == 0
    assert resumed["figures"]["steps saved before the kill"] >= 1


@pytest.mark.campaign
def test_every_part_with_compiled_layers(
    tmp_path: Path, benchmarks: None, capsys: pytest.CaptureFixture[str]
) -> None:
    rehearsed(tmp_path, capsys)


def test_a_miss_and_what_was_not_run_change_the_status(benchmarks: None) -> None:
    from on_gpu.rows import Row, exit_status, held
    from on_gpu.setting import run_part

    wrong = held("kernels", "norm", {"forward": float("nan")}, {"forward": 1e-2})
    assert (wrong.status, exit_status([wrong, Row("a", "b")])) == ("miss", 1)

    def broken() -> Row:
        raise KeyError("typo")

    fails, late = (list(run_part("steps", [("x", broken)], seconds)) for seconds in (60, -1))
    assert fails[0].status == "miss" and "KeyError: 'typo' (test_gpu.py" in fails[0].note
    assert late[0].status == "not run" and exit_status(late) == 2


def test_a_wrong_kernel_is_a_miss(benchmarks: None, tmp_path: Path) -> None:
    import torch
    from on_gpu.kernels import compared, random
    from on_gpu.setting import Setting

    setting = Setting(torch.device("cpu"), True, tmp_path)
    x = random(setting, 8, 16)
    assert compared(setting, "right", torch.sin, torch.sin, (x,)).status == "ok"
    assert compared(setting, "wrong", torch.sin, torch.tanh, (x,)).status == "miss"


def test_wheels_are_for_the_other_python(benchmarks: None, tmp_path: Path) -> None:
    from on_gpu.wheels import commands, install_line

    download, build = commands(tmp_path, "3.12", "manylinux_2_28_x86_64", ["peft"])
    assert download[:4] == [sys.executable, "-m", "pip", "download"]
    assert "--no-deps" in download and download[download.index("--python-version") + 1] == "3.12"
    assert {"torchtune==0.6.1", "torchao==0.15.0", "peft"} <= set(download)
    assert not {"torch", "torchvision", "transformers"} & set(download)
    assert build[-1] == str(BENCHMARKS.parent) and "--no-deps" in build
    assert install_line(tmp_path) == f"pip install --no-index --no-deps {tmp_path}/*.whl"
