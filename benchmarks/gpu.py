"""Measure on a GPU what was only rehearsed: one command, one GPU, under ten minutes.

    python benchmarks/gpu.py --out results            measure; results.json and results.md
    python benchmarks/gpu.py --rehearse               the same code on a CPU: tiny sizes, no times
    python benchmarks/gpu.py --parts kernels sync     only some parts

Kernels are compared with fp64, training steps of real sizes with random weights are timed with packed JPEG
files from disk, and a run that was killed is resumed. Every part has its share of the time; what finds none
left is named. Exit status: 0 if all is as expected, 1 after a miss, 2 if something was not run. What a bare
GPU machine lacks is gathered by `python benchmarks/on_gpu/wheels.py`.
"""

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

# CUDA must be found without being started: the first part forks.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

import torch
from on_gpu import kernels, reference, resuming, steps
from on_gpu.rows import Row, exit_status, table, write
from on_gpu.setting import BUDGETS, TOTAL, Measurement, Setting, run_part

# Resuming comes first: it forks, and CUDA does not survive a fork. Compiling takes longest and comes last.
PARTS: dict[str, Callable[[Setting], Iterator[Measurement]]] = {
    "resume": resuming.measurements,
    "kernels": kernels.measurements,
    "sync": steps.waits,
    "shard": steps.sharded,
    "savers": steps.savers,
    "reference": reference.measurements,
    "steps": steps.measurements,
}


def main(argv: list[str] | None = None) -> int:
    """Run the parts, write the results, and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, tiny sizes, no times")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--out", type=Path, default=Path("gpu_results"), help="default: %(default)s")
    arguments = parser.parse_args(argv)
    if not arguments.rehearse and not torch.cuda.is_available():
        parser.error("torch finds no GPU; --rehearse runs the same code on the CPU")
    if arguments.rehearse:  # a CPU's compiler takes minutes, and measures nothing here
        os.environ.setdefault("TORCH_COMPILE_BACKEND", "eager")
    device = torch.device("cpu") if arguments.rehearse else torch.device("cuda", 0)
    rows: list[Row] = []
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(device, arguments.rehearse, Path(folder))
        for part in PARTS:
            if part in arguments.parts:
                left = TOTAL - (time.perf_counter() - begin)
                for row in run_part(part, PARTS[part](setting), min(left, BUDGETS.get(part, left))):
                    rows.append(row)
                    print(f"{row.status:8}{row.part}: {row.name} {row.note}", file=sys.stderr, flush=True)
                    write(rows, machine(arguments.rehearse), arguments.out)
    print(table(rows, machine(arguments.rehearse)))
    return exit_status(rows)


def machine(rehearsed: bool) -> dict[str, str]:
    """The device and versions."""
    device = f"{platform.machine()}, rehearsed" if rehearsed else torch.cuda.get_device_name()
    versions = {name: version(name) for name in ("torch", "torchtune", "torchao", "transformers")}
    return {"on": device, "Python": platform.python_version(), **versions}


if __name__ == "__main__":
    sys.exit(main())
