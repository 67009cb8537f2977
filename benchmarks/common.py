"""Shared by the benchmarks: run two sides in turns, report medians and ratios, measure peak memory.

Two sides are compared in one run and take turns, so that other work on the machine affects both alike. Quote
the ratio, not the times.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing as mp
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

Side = Callable[[], object]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def describe_machine(threads: int) -> str:
    """One line with versions and cores, printed above every table."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "transformers"))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return (
        f"{device}, {threads} of {os.cpu_count()} CPU threads, Python {platform.python_version()}, {packages}"
    )


def compare(
    sides: dict[str, Side],
    repeats: int,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
    summary: Callable[[list[float]], float] = statistics.median,
) -> dict[str, float]:
    """Median seconds of each side; the sides take turns in every repeat."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(warmup + repeats):
        for name, run in sides.items():
            start = clock()
            run()
            if repeat >= warmup:
                seconds[name].append(clock() - start)
    return {name: summary(values) for name, values in seconds.items()}


def _serve(make_side: Callable[[], Side], threads: int, pipe) -> None:
    torch.set_num_threads(threads)
    run = make_side()
    before = _peak_mb()
    while pipe.recv() == "run":
        start, cpu = time.perf_counter(), time.process_time()
        value = run()
        pipe.send((time.perf_counter() - start, time.process_time() - cpu, value))
    pipe.send((before, _peak_mb()))


def _peak_mb() -> float:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def compare_processes(
    sides: dict[str, Callable[[], Side]], repeats: int, threads: int, warmup: int = 2
) -> dict[str, dict]:
    """Like `compare`, but each side has its own process, whose peak memory is measured too.

    Args:
        sides: name -> picklable function that sets the side up and returns what is to be timed.

    Returns:
        name -> {"seconds": median, "cpu_seconds": median CPU time of all threads, which other work on the
        machine affects less, "peak_mb": peak resident memory of the process, "start_mb": the same before the
        first run, "value": what the last run returned}
    """
    context = mp.get_context("spawn")
    pipes, processes = {}, []
    for name, make_side in sides.items():
        pipes[name], theirs = context.Pipe()
        processes.append(context.Process(target=_serve, args=(make_side, threads, theirs), daemon=True))
        processes[-1].start()
        theirs.close()  # so that a side that dies ends the run
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    cpu: dict[str, list[float]] = {name: [] for name in sides}
    values: dict[str, object] = {}
    for repeat in range(warmup + repeats):
        for name, pipe in pipes.items():
            pipe.send("run")
            taken, busy, values[name] = pipe.recv()
            if repeat >= warmup:
                seconds[name].append(taken)
                cpu[name].append(busy)
    result = {}
    for name, pipe in pipes.items():
        pipe.send("stop")
        start_mb, peak_mb = pipe.recv()
        result[name] = {
            "seconds": statistics.median(seconds[name]),
            "cpu_seconds": statistics.median(cpu[name]),
            "peak_mb": peak_mb,
            "start_mb": start_mb,
            "value": values[name],
        }
    for process in processes:
        process.join()
    return result


def in_process(target: Callable[..., None], *arguments: Any) -> Any:
    """Call `target(pipe, *arguments)` in a new process and return what it sends."""
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *arguments))
    process.start()
    theirs.close()  # so that a process that dies ends the run
    result = ours.recv()
    process.join()
    return result


def training_step(model: torch.nn.Module, loss_of: Callable[[], torch.Tensor]) -> Side:
    """A training step: forward, backward and fused AdamW of the trainable parameters. Returns the loss."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6, fused=True)

    def run() -> float:
        loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return run


def mean_loss(model: Callable[..., Any], batch: dict[str, Any]) -> torch.Tensor:
    """The loss of our model per labelled token."""
    loss_sum, n = model(**batch)
    return loss_sum / n


def compare_steps(
    description: str | None,
    make_checkpoint: Callable[[Path], None],
    reference_side: Callable[[Path, torch.dtype], Side],
    our_side: Callable[[Path, torch.dtype], Side],
) -> None:
    """A command line that prints time and peak memory of a training step, one row per dtype.

    Args:
        description: text for `--help`.
        make_checkpoint: writes the checkpoint folder that both sides load.
        reference_side: (folder, dtype) -> the step to measure, which returns its loss.
        our_side: the same for our model.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtype", choices=DTYPES, action="append", help="both when left out")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    print(describe_machine(arguments.threads))
    print("| dtype | reference ms | ours ms | speed-up | reference MB | ours MB | memory | last losses |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_checkpoint(folder)
        for name in arguments.dtype or DTYPES:
            sides = {
                "reference": functools.partial(reference_side, folder, DTYPES[name]),
                "ours": functools.partial(our_side, folder, DTYPES[name]),
            }
            result = compare_processes(sides, arguments.repeats, arguments.threads)
            reference, ours = result["reference"], result["ours"]
            speed = reference["seconds"] / ours["seconds"]
            memory = ours["peak_mb"] / reference["peak_mb"]
            print(
                f"| {name} | {1e3 * reference['seconds']:.0f} | {1e3 * ours['seconds']:.0f} | {speed:.2f} "
                f"| {reference['peak_mb']:.0f} | {ours['peak_mb']:.0f} | {memory:.2f} "
                f"| {reference['value']:.4f} {ours['value']:.4f} |",
                flush=True,
            )
