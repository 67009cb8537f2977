"""Memory of data workers and time to the first batch, for each way in which workers are started.

    python benchmarks/processes/workers.py [--workers 0 2 4] [--repeats 3]

Each row is the fastest of several fresh processes. Each imports the recipe, opens a small dataset and reads
batches from it. Resident memory is not shown, since it counts shared pages once in every process. USS is the
memory that only one worker uses. PSS divides each shared page among the processes that share it, so the sum
over all processes is what the machine needs. "importing again" is a fork server with nothing preloaded, the
default of Python 3.14.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WAYS = {
    "fork": ("fork", True),
    "forkserver, importing again": ("forkserver", False),
    "forkserver, preloaded": ("forkserver", True),
    "spawn": ("spawn", True),
}
BATCH = 8


def memory_mb(pid: int) -> tuple[float, float]:
    """PSS and USS of a process."""
    kilobytes = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value, *_ = line.split()
        kilobytes[name.rstrip(":")] = int(value)
    return kilobytes["Pss"] / 1024, (kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]) / 1024


def below(pid: int) -> list[int]:
    """All processes that a process has started, and those that they have started."""
    children = [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [*children, *(other for child in children for other in below(child))]


def measure_row(way: str, num_workers: int, folder: Path) -> dict[str, Any]:
    """In this process, which must be fresh: time and memory of one way."""
    method, shares = WAYS[way]
    multiprocessing.set_start_method(method)
    # As `tune run` has it: the recipe and all that it imports.
    importlib.import_module("torchtune_qwenvl.recipes.finetune")
    import torch

    from torchtune_qwenvl import load_transform
    from torchtune_qwenvl.data import ResumableSampler, build_loader, vision_chat_dataset, workers

    if not shares:
        workers.modules_to_share = list
    torch.set_num_threads(1)
    dataset = vision_chat_dataset(load_transform(folder / "checkpoint"), source=folder / "data/train.jsonl")
    sampler = ResumableSampler(len(dataset))
    start = time.perf_counter()
    loader = build_loader(dataset, batch_size=BATCH, sampler=sampler, num_workers=num_workers)
    batches = iter(loader)
    next(batches)
    seconds = time.perf_counter() - start
    for _ in range(4 * max(1, num_workers)):  # so that every worker has read something
        next(batches)
    readers = [process.pid for process in multiprocessing.active_children()]
    everyone = [memory_mb(pid)[0] for pid in (os.getpid(), *below(os.getpid()))]
    uss = [memory_mb(pid)[1] for pid in readers]
    pss = [memory_mb(pid)[0] for pid in readers]
    return {
        "seconds": seconds,
        "uss": sum(uss) / max(1, len(uss)),
        "pss": sum(pss) / max(1, len(pss)),
        "total": sum(everyone),
    }


def run_row(way: str, num_workers: int, folder: Path, repeats: int) -> dict[str, Any]:
    """The fastest of several fresh processes."""
    command = [sys.executable, __file__, "--row", way, str(num_workers), str(folder)]
    rows = []
    for _ in range(repeats):
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rows.append(json.loads(printed.splitlines()[-1]))
    return min(rows, key=lambda row: row["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2, 4])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--row", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        way, num_workers, folder = arguments.row
        print(json.dumps(measure_row(way, int(num_workers), Path(folder))))
        return
    from torchtune_qwenvl.demo import write_digits, write_tiny_checkpoint

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tiny_checkpoint(str(folder / "checkpoint"))
        write_digits(str(folder / "data"))
        print(
            "| workers | started by | first batch, s | USS of a worker, MB | PSS of a worker | PSS of all |"
        )
        print("|---|---|---|---|---|---|")
        for num_workers in arguments.workers:
            for way in WAYS if num_workers else ["fork"]:
                row = run_row(way, num_workers, folder, arguments.repeats)
                label = way if num_workers else "none"
                figures = f"{row['seconds']:.2f} | {row['uss']:.0f} | {row['pss']:.0f} | {row['total']:.0f}"
                print(f"| {num_workers} | {label} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
