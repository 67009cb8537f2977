"""Every figure that a run logged, whatever the metric logger is, kept over resumes: output_dir/metrics.jsonl.

    {"step": 20, "loss": 0.25, "grad_norm": 1.5, ...}
    {"step": 20, "val_loss": 0.31}

A run that goes on from step N forgets what was logged after it, so that the curves are those of one run.
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
    """Passes everything on to a metric logger, and writes it down.

    Args:
        logger: where figures go, too.
        output_dir: of the run.
        step: that the run starts from.
        resumed_from: the `step_N/` folder; its run's file is continued. None begins a new one.
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
    """Name -> [(step, value)] of what a run logged; empty where it logged nothing."""
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
    """The file's lines; the last one may be half written where a run was killed, and is left out then."""
    lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else [""]
    return [json.loads(line) for line in lines[:-1]]
