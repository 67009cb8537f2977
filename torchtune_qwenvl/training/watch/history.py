"""Write all metrics of a run to output_dir/metrics.jsonl, whatever the metric logger is.

    {"step": 20, "loss": 0.25, "grad_norm": 1.5, ...}
    {"step": 20, "val_loss": 0.31}

A run that resumes from step N drops the lines of later steps, so that each step has one value. A line that
cannot be read is moved to metrics.jsonl.bad. A log never stops a run: what cannot be written is said once.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torchtune.training.metric_logging import MetricLoggerInterface

from torchtune_qwenvl.durable import make_folder, write_file

log = logging.getLogger(__name__)

FILE, BAD = "metrics.jsonl", ".bad"


class History(MetricLoggerInterface):
    """A metric logger that writes everything to a file and passes it on to another metric logger.

    Args:
        logger: the other metric logger.
        output_dir: the run's folder.
        step: the step from which the run starts.
        resumed_from: the `step_N/` folder of a run whose file is continued. None starts a new file.
    """

    def __init__(
        self, logger: MetricLoggerInterface, output_dir: Path, step: int = 0, resumed_from: Path | None = None
    ) -> None:
        self.logger, self.path = logger, output_dir / FILE
        self._silent: set[str] = set()
        make_folder(output_dir)
        if resumed_from is None:
            self.path.unlink(missing_ok=True)
        else:
            _continue(resumed_from.parent / FILE, self.path, step)

    def log_config(self, config: DictConfig) -> None:
        self.logger.log_config(config)

    def log(self, name: str, data: Any, step: int) -> None:
        self.log_dict({name: data}, step)

    def log_dict(self, payload: Mapping[str, Any], step: int) -> None:
        with self._going_on("metric_logger"):
            self.logger.log_dict(payload, step)
        figures = {name: float(value) for name, value in payload.items()}
        with self._going_on(str(self.path)), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **figures}) + "\n")

    def close(self) -> None:
        with self._going_on("metric_logger"):
            self.logger.close()

    @contextmanager
    def _going_on(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if what not in self._silent:
                self._silent.add(what)
                log.warning(f"{what} cannot be written: {error}. The run goes on without; this is said once")


def read_curves(output_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Name -> [(step, value)] of the metrics of a run; empty if it logged none."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for figures in _read(output_dir / FILE)[0]:
        step = figures.pop("step")
        for name, value in figures.items():
            curves.setdefault(name, []).append((step, value))
    return curves


def _continue(old: Path, new: Path, step: int) -> None:
    """Write the old file's lines up to a step, and set aside what cannot be read."""
    lines, bad = _read(old)
    kept = [figures for figures in lines if figures["step"] <= step]
    try:
        if bad:
            aside = new.with_name(new.name + BAD)
            with aside.open("ab") as file:
                file.writelines(content + b"\n" for _, content in bad)
            numbers = ", ".join(str(number) for number, _ in bad[:5])
            log.warning(f"{old}: {len(bad)} lines cannot be read (line {numbers}); they are now in {aside}")
        write_file(new, "".join(json.dumps(figures) + "\n" for figures in kept).encode())
    except (OSError, ValueError) as error:
        log.warning(f"{new}: what was logged before step {step} is lost: {error}")


def _read(path: Path) -> tuple[list[dict[str, Any]], list[tuple[int, bytes]]]:
    """The figures of each line, and (number, content) of the lines that hold none.

    A killed run may leave its last line half written; that is no bad line.
    """
    lines = path.read_bytes().split(b"\n") if path.is_file() else [b""]
    read, bad = [], []
    for number, line in enumerate(lines[:-1], start=1):
        figures = _figures(line)
        if figures is None:
            bad.append((number, line))
        else:
            read.append(figures)
    return read, bad


def _figures(line: bytes) -> dict[str, Any] | None:
    """A line's figures with their step; None if it is not what `History` writes."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or type(found.get("step")) is not int:
        return None
    return found if all(type(value) in (int, float) for value in found.values()) else None
