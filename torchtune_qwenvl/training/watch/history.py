"""Write all metrics of a run to output_dir/metrics.jsonl, whatever the metric logger is.

    {"step": 20, "loss": 0.25, "grad_norm": 1.5, ...}
    {"step": 20, "val_loss": 0.31}

A run that resumes from step N drops the lines of later steps, so that each step has one value.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torchtune.training.metric_logging import MetricLoggerInterface

FILE = "metrics.jsonl"


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
        output_dir.mkdir(parents=True, exist_ok=True)
        if resumed_from is None:
            self.path.unlink(missing_ok=True)
        else:
            _continue(resumed_from.parent / FILE, self.path, step)

    def log_config(self, config: DictConfig) -> None:
        self.logger.log_config(config)

    def log(self, name: str, data: Any, step: int) -> None:
        self.log_dict({name: data}, step)

    def log_dict(self, payload: Mapping[str, Any], step: int) -> None:
        self.logger.log_dict(payload, step)
        figures = {name: float(value) for name, value in payload.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **figures}) + "\n")

    def close(self) -> None:
        self.logger.close()


def read_curves(output_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Name -> [(step, value)] of the metrics of a run; empty if it logged none."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for figures in _lines(output_dir / FILE):
        step = figures.pop("step")
        for name, value in figures.items():
            curves.setdefault(name, []).append((step, value))
    return curves


def _continue(old: Path, new: Path, step: int) -> None:
    kept = [figures for figures in _lines(old) if figures["step"] <= step]
    part = new.with_suffix(".tmp")
    part.write_text("".join(json.dumps(figures) + "\n" for figures in kept), encoding="utf-8")
    shutil.move(part, new)


def _lines(path: Path) -> list[dict[str, Any]]:
    """The file's complete lines; a killed run may leave its last line half written."""
    lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else [""]
    return [json.loads(line) for line in lines[:-1]]
