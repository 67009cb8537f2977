"""What images cost in the first and in later epochs, with and without `cache_features`, and the losses.

    python benchmarks/features/cache.py [--threads 1] [--images 12] [--side 448] [--epochs 3]

Each row is a run of the recipe in a new process: LoRA on the decoder, encoder and merger frozen, bf16, one
conversation per batch, shuffled. The vision cost of an epoch is all of the time for reading headers, looking
images up, decoding, resizing, encoding and storing. The exit code is 1 if a loss differs in one bit, or if an
epoch that finds all features spends more than 2 % of the first one's vision cost.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import describe_machine, in_process
from savers import LORA, TEXT
from workload import write_workload

VISION = {
    "depth": 12,
    "hidden_size": 640,
    "intermediate_size": 1728,
    "num_heads": 8,
    "out_hidden_size": 512,
    "fullatt_block_indexes": [5, 11],
}
LIMIT = 0.02


class Epoch(NamedTuple):
    """Seconds of an epoch in all, of them for vision, and its losses as they are printed."""

    seconds: float
    vision: float
    losses: list[str]


class Clock:
    """Adds up the time that is spent inside of the functions that it wraps."""

    def __init__(self) -> None:
        self.seconds, self._depth = 0.0, 0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **options: Any) -> Any:
            start, self._depth = time.perf_counter(), self._depth + 1
            try:
                return function(*arguments, **options)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += time.perf_counter() - start

        return timed


def measure(pipe: Any, config: str, overrides: Sequence[str], threads: int) -> None:
    """Train, and send the `Epoch`s."""
    import torch

    from torchtune_qwenvl.recipes.finetune import FinetuneRecipe
    from torchtune_qwenvl.settings.config import resolve

    torch.set_num_threads(threads)
    recipe = FinetuneRecipe(resolve(config, list(overrides)))
    recipe.setup()
    clock, losses, epochs = Clock(), [], []
    transform = recipe.features.transform
    transform._plan, transform.read_media = map(clock.around, (transform._plan, transform.read_media))
    recipe.features.complete = clock.around(recipe.features.complete)
    recipe.model.vision_encoder.forward = clock.around(recipe.model.vision_encoder.forward)
    step, train_epoch = recipe.step, recipe.train_epoch

    def kept_step(batches: list[Any]) -> Any:
        done = step(batches)
        losses.append(done.loss.item().hex())
        return done

    def timed_epoch(epoch: int) -> None:
        start, clock.seconds = time.perf_counter(), 0.0
        losses.clear()
        train_epoch(epoch)
        epochs.append(Epoch(time.perf_counter() - start, clock.seconds, list(losses)))

    recipe.step, recipe.train_epoch = kept_step, timed_epoch
    recipe.train()
    recipe.features.close()
    pipe.send(epochs)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--images", type=int, default=12, help="conversations with an image")
    parser.add_argument("--side", type=int, default=448, help="of an image in pixels")
    parser.add_argument("--epochs", type=int, default=3)
    given = parser.parse_args()
    print(describe_machine(given.threads))
    print("| run | epoch | seconds | for vision | of the first epoch's |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config = write_workload(folder, [(given.side, 60)] * given.images, TEXT, VISION)
        cached = ("cache_features=true", f"feature_cache_dir={folder / 'features'}")
        runs = {"without a cache": (), "cache, empty": cached, "cache, filled by the run before": cached}
        found: dict[str, list[Epoch]] = {}
        for name, more in runs.items():
            common = (*LORA, f"epochs={given.epochs}", f"output_dir={folder / name}", *more)
            found[name] = in_process(measure, str(config), common, given.threads)
            report(name, found[name], found["cache, empty" if more else name][0].vision)
    sys.exit(verdict(found))


def report(name: str, epochs: Sequence[Epoch], first: float) -> None:
    for number, epoch in enumerate(epochs, 1):
        share = f"{epoch.vision / first:.2%}"
        print(f"| {name} | {number} | {epoch.seconds:.2f} | {epoch.vision:.3f} | {share} |", flush=True)


def verdict(found: dict[str, list[Epoch]]) -> int:
    """Print what has to hold; the exit code."""
    plain, cold, warm = ([epoch.losses for epoch in epochs] for epochs in found.values())
    _, first, later = found.values()
    shares = [epoch.vision / first[0].vision for epoch in (*first[1:], *later)]
    print(
        f"\nlosses of {sum(map(len, plain))} steps: with a cache as without one, bit for bit: {plain == cold}"
    )
    print(f"losses of the filled cache as of the empty one, bit for bit: {cold == warm}")
    print(
        f"vision cost where all is known: at most {max(shares):.2%} of the first epoch's, limit {LIMIT:.0%}"
    )
    return 0 if plain == cold == warm and max(shares) <= LIMIT else 1


if __name__ == "__main__":
    main()
