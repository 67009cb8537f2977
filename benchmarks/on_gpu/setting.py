"""Where the benchmark runs: the device, the sizes, clocks, and how long each part may take."""

import statistics
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from on_gpu.rows import MISS, NOT_RUN, Row

# Seconds that each part may take; the last one has what is left of the total. A measurement that has begun is
# finished; what has not is not run.
BUDGETS = {"resume": 70, "kernels": 45, "sync": 40, "shard": 35, "savers": 50, "reference": 50}
TOTAL = 560


@dataclass(frozen=True)
class Setting:
    """The device and the sizes.

    Attributes:
        device: CUDA, or the CPU of a rehearsal.
        rehearse: tiny sizes, no times.
        folder: for files of the benchmark.
    """

    device: torch.device
    rehearse: bool
    folder: Path

    def size(self, real: int, tiny: int) -> int:
        """The one or the other."""
        return tiny if self.rehearse else real

    def wait(self) -> None:
        """Until the device has done everything."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def restart_peak(self) -> None:
        """Measure peak memory from here on."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_gb(self) -> float:
        """Most memory in use since `restart_peak`; 0 on the CPU."""
        return torch.cuda.max_memory_allocated(self.device) / 1e9 if self.device.type == "cuda" else 0.0

    def milliseconds(self, run: Callable[[], Any], repeats: int = 10) -> float:
        """Median of a few runs; a rehearsal runs once and says 0."""
        if self.rehearse:
            run()
            return 0.0
        for _ in range(3):
            run()
        taken = []
        for _ in range(repeats):
            self.wait()
            start = time.perf_counter()
            run()
            self.wait()
            taken.append(1e3 * (time.perf_counter() - start))
        return statistics.median(taken)


Measurement = tuple[str, Callable[[], Row | list[Row]]]


def run_part(part: str, measurements: Iterable[Measurement], seconds: float) -> Iterator[Row]:
    """The rows of a part's measurements; an error is a miss, what finds no time left is not run."""
    end = time.perf_counter() + seconds
    for name, measure in measurements:
        if time.perf_counter() > end:
            yield Row(part, name, NOT_RUN, note=f"the {seconds:.0f} s of this part were over")
            continue
        start = time.perf_counter()
        try:
            rows = measure()
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            yield Row(part, name, MISS, note=f"{text} ({Path(where.filename).name}:{where.lineno})")
            continue
        for row in rows if isinstance(rows, list) else [rows]:
            row.figures.setdefault("s", round(time.perf_counter() - start, 1))
            yield row
