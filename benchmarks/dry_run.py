"""Compare a dry run's prediction with the epoch that follows: peak memory and seconds per step.

    python benchmarks/dry_run.py [--threads 1] [--conversations 96] [--repeats 1] [key=value ...]

The recipe runs twice on the same data, in a new process each time: with `dry_run=true`, and for one epoch.
Lengths are log-normal, and every other conversation has an image with sides of 56 to 448 pixels. The epoch's
time includes all steps and waiting for data. Run this on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path

from common import describe_machine, in_process
from savers import TEXT, VISION
from workload import write_workload

SMALLER = {"num_hidden_layers": 4, "intermediate_size": 1024}


def conversations(number: int) -> list[tuple[int, int]]:
    """Image sides and lengths."""
    rng = random.Random(0)
    sides = [28 * rng.randint(2, 16) if i % 2 else 0 for i in range(number)]
    return [(side, min(768, int(rng.lognormvariate(4.6, 0.9)) + 8)) for side in sides]


def run(pipe, config: str, overrides: list[str], threads: int) -> None:
    """Run a dry run or the epoch, and send (peak memory in GiB, seconds per step)."""
    import torch

    from torchtune_qwenvl.recipes.finetune import FinetuneRecipe
    from torchtune_qwenvl.settings.config import resolve
    from torchtune_qwenvl.training.watch.metrics import peak_memory_gib

    torch.set_num_threads(threads)
    recipe = FinetuneRecipe(resolve(config, ["log_every_n_steps=1000000", *overrides]))
    recipe.setup()
    if recipe.cfg.dry_run:
        found = recipe.forecast()
        pipe.send((found.peak_memory_gib, found.seconds_per_step))
    else:
        figures: dict[str, float] = {}
        recipe.log_step = lambda *_: figures.update(recipe.meter.report())
        recipe.train()
        pipe.send((peak_memory_gib(recipe.world.device), figures["seconds_per_step"]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--conversations", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("overrides", nargs="*", help="key=value, of the recipe")
    arguments = parser.parse_args()
    print(describe_machine(arguments.threads))
    print("| | predicted | epoch | ratio |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        rows = conversations(arguments.conversations)
        config = write_workload(Path(temporary), rows, {**TEXT, **SMALLER}, VISION)
        overrides = ["batch_size=4", "dtype=fp32", *arguments.overrides]
        for _ in range(arguments.repeats):
            dry = in_process(run, str(config), [*overrides, "dry_run=true"], arguments.threads)
            real = in_process(run, str(config), overrides, arguments.threads)
            for name, predicted, taken in zip(("peak GiB", "seconds per step"), dry, real, strict=True):
                print(f"| {name} | {predicted:.3f} | {taken:.3f} | {predicted / taken:.2f} |", flush=True)


if __name__ == "__main__":
    main()
