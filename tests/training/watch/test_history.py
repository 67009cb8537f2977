"""What a run logged is kept whole over a resume, whatever the metric logger is."""

import json
from pathlib import Path

import pytest

from torchtune_qwenvl.training.watch.history import FILE, History, read_curves


class Kept:
    """A metric logger that only remembers."""

    def __init__(self) -> None:
        self.lines: list = []

    def log_dict(self, payload, step: int) -> None:
        self.lines.append((step, dict(payload)))

    def close(self) -> None:
        self.lines.append("closed")


def log(folder: Path, steps: range, value: float, **resumed) -> Kept:
    logger = Kept()
    history = History(logger, folder, **resumed)
    for step in steps:
        history.log_dict({"loss": value, "lr_decoder": value / 10}, step)
    history.log("val_loss", value, steps[-1])
    history.close()
    return logger


def test_everything_reaches_the_logger_and_the_file(tmp_path: Path) -> None:
    logger = log(tmp_path, range(1, 3), 2.0)
    first, second = ((step, {"loss": 2.0, "lr_decoder": 0.2}) for step in (1, 2))
    assert logger.lines == [first, second, (2, {"val_loss": 2.0}), "closed"]
    assert json.loads((tmp_path / FILE).read_text().splitlines()[0]) == {"step": 1, **first[1]}
    curves = read_curves(tmp_path)
    assert curves == {
        "loss": [(1, 2.0), (2, 2.0)],
        "lr_decoder": [(1, 0.2), (2, 0.2)],
        "val_loss": [(2, 2.0)],
    }


def test_a_resumed_run_goes_on_where_the_folder_was_saved(tmp_path: Path) -> None:
    log(tmp_path, range(1, 6), 2.0)
    with (tmp_path / FILE).open("a") as file:
        file.write('{"step": 6, "lo')  # killed while writing
    log(tmp_path, range(4, 7), 1.0, step=3, resumed_from=tmp_path / "step_3")
    assert read_curves(tmp_path)["loss"] == [(step, 2.0 if step < 4 else 1.0) for step in range(1, 7)]
    elsewhere = tmp_path / "elsewhere"
    log(elsewhere, range(7, 8), 0.5, step=6, resumed_from=tmp_path / "step_6")
    assert [step for step, _ in read_curves(elsewhere)["loss"]] == [*range(1, 8)]
    assert len(read_curves(tmp_path)["loss"]) == 6


def test_a_new_run_begins_anew(tmp_path: Path) -> None:
    log(tmp_path, range(1, 4), 2.0)
    log(tmp_path, range(1, 2), 1.0)
    assert read_curves(tmp_path)["loss"] == [(1, 1.0)] and read_curves(tmp_path / "nowhere") == {}


BAD_LINES = (
    b"{broken",
    b"[1]",
    b'{"loss": 1}',
    b'{"step": "4", "loss": 1}',
    b"\x00" * 40,
    b"\xff\xfe",
    b"[" * 9999,
)


def test_bad_lines_are_set_aside_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A damaged log stops no run, and what it holds is not thrown away."""
    log(tmp_path, range(1, 4), 2.0)
    lines = (tmp_path / FILE).read_bytes().splitlines()
    mixed = [lines[0], *BAD_LINES, *lines[1:]]
    (tmp_path / FILE).write_bytes(b"\n".join(mixed) + b"\n")
    assert read_curves(tmp_path)["loss"] == [(step, 2.0) for step in (1, 2, 3)]
    log(tmp_path, range(4, 6), 1.0, step=3, resumed_from=tmp_path / "step_3")
    assert [step for step, _ in read_curves(tmp_path)["loss"]] == [1, 2, 3, 4, 5]
    assert (tmp_path / "metrics.jsonl.bad").read_bytes() == b"\n".join(BAD_LINES) + b"\n"
    assert "metrics.jsonl: 7 lines cannot be read (line 2, 3, 4, 5, 6)" in caplog.text
    assert json.loads((tmp_path / FILE).read_text().splitlines()[-1])["step"] == 5


def test_a_full_disk_stops_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(Kept):
        def log_dict(self, payload, step: int) -> None:
            raise OSError(28, "No space left on device")

    history = History(Full(), tmp_path)
    monkeypatch.setattr(Full, "close", lambda self: self.log_dict({}, 0))
    (tmp_path / FILE).mkdir()
    for step in (1, 2, 3):
        history.log_dict({"loss": 1.0}, step)
    history.close()
    assert caplog.text.count("metric_logger cannot be written: [Errno 28] No space left on device") == 1
    assert caplog.text.count(f"{FILE} cannot be written: [Errno 21] Is a directory") == 1
