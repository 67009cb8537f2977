"""Many samples and many steps: one bad record is one line and nothing else, and nothing grows.

The bad record is looked for in each style of records, indexed and streamed, with and without workers.
"""

import gc
import json
import logging
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.campaign import campaign_seed, campaign_size
from faults.mini_run import COSINE, MiniRun

from torchtune_qwenvl import load_transform
from torchtune_qwenvl.data import build_loader, vision_chat_dataset
from torchtune_qwenvl.data.loader import Loader
from torchtune_qwenvl.distributed import World
from torchtune_qwenvl.training.order import Order, order_of

STYLES: dict[str, Any] = {
    "qa": lambda n: {"question": f"Number {n}?", "answer": f"{n}."},
    "conversations": lambda n: {
        "conversations": [{"from": "human", "value": f"Number {n}?"}, {"from": "gpt", "value": f"{n}."}]
    },
    "messages": lambda n: {
        "messages": [{"role": "user", "content": f"Number {n}?"}, {"role": "assistant", "content": f"{n}."}]
    },
    "alpaca": lambda n: {"instruction": f"Number {n}?", "input": "", "output": f"{n}."},
    "swift": lambda n: {"query": f"Number {n}?", "response": f"{n}.", "history": []},
    "completion": lambda n: {"prompt": f"Number {n}?", "completion": f"{n}."},
}
BATCH = 64


def write(path: Path, style: str, n: int, bad: int | None = None) -> Path:
    """n records of a style, of which one lacks its answer."""
    with open(path, "w") as file:
        for number in range(n):
            record = {"messages": 7} if number == bad else STYLES[style](number)
            file.write(json.dumps(record) + "\n")
    return path


def loader(transform: Any, source: Path, streaming: bool, workers: int) -> Loader:
    dataset = vision_chat_dataset(transform, source=str(source), on_bad_sample="skip", streaming=streaming)
    order = Order(campaign_seed(), num_workers=workers)
    samples, sampler = order_of(dataset, order, World(torch.device("cpu")), lambda tokens, _: tokens, True)
    return build_loader(samples, batch_size=BATCH, sampler=sampler, on_bad_sample="skip", num_workers=workers)


@pytest.fixture(scope="module")
def transform(tiny_folder: Path) -> Any:
    return load_transform(tiny_folder, max_seq_len=512)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("streaming", [False, True], ids=["indexed", "streamed"])
@pytest.mark.parametrize("style", STYLES)
def test_one_bad_record_is_one_line(
    style: str,
    streaming: bool,
    workers: int,
    transform: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if campaign_size(0, 1) == 0 and workers and style != "qa":
        pytest.skip("with workers, the small share has one style")
    largest = campaign_size(300, 1_000_000 if (style, workers) == ("qa", 2) else 20_000)
    bad = random.Random(f"{campaign_seed()} {style}").randrange(largest)
    batches = loader(transform, write(tmp_path / "data.jsonl", style, largest, bad), streaming, workers)
    seen, skipped = 0, []
    with caplog.at_level(logging.WARNING):
        for batch in batches:
            seen, skipped = seen + batch.samples, [*skipped, *batch.skipped]
            if seen + len(skipped) >= largest:
                break
    assert (seen, len(skipped)) == (largest - 1, 1)
    assert "data.jsonl" in skipped[0].reason and "messages" in skipped[0].reason
    lines = [record for record in caplog.records if "skipped: " in record.getMessage()]
    assert len(lines) == 1


class Watched:
    """What a process holds: memory, open files, and files in shared memory."""

    def __init__(self) -> None:
        gc.collect()
        with open("/proc/self/statm") as file:
            self.memory = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        self.files = len(os.listdir("/proc/self/fd"))
        self.shared = len(os.listdir("/dev/shm"))

    def check(self, earlier: "Watched") -> None:
        """Raise an AssertionError if more is held than before, but for 32 MB of caches."""
        assert self.memory - earlier.memory < 32 << 20, f"{(self.memory - earlier.memory) >> 20} MB more"
        assert self.files <= earlier.files and self.shared <= earlier.shared


def watched(steps: Iterator[Any], first: int) -> tuple[Watched, Watched]:
    """What is held after the first steps and after the last."""
    before = None
    for number, _ in enumerate(steps):
        if number == first:
            before = Watched()
    assert before is not None
    return before, Watched()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="looks into /proc")
@pytest.mark.parametrize("streaming", [False, True], ids=["indexed", "streamed"])
def test_reading_many_samples_holds_nothing(streaming: bool, transform: Any, tmp_path: Path) -> None:
    n = campaign_size(6_400, 1_000_000)
    source = write(tmp_path / "data.jsonl", "qa", n)

    def batches() -> Iterator[Any]:
        seen = 0
        for batch in loader(transform, source, streaming, 0):
            yield batch
            if (seen := seen + batch.samples) >= n:
                return

    before, after = watched(batches(), n // BATCH // 4)
    after.check(before)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="looks into /proc")
def test_many_steps_hold_nothing(tmp_path: Path) -> None:
    epochs = campaign_size(20, 1_440)
    steps = 7 * epochs  # 27 samples, four at a time
    options = (f"epochs={epochs}", f"save_every_n_steps={steps // 4}", "num_workers=0")
    seen: list[Watched] = []

    class Soak(MiniRun):
        def save(self) -> Path:
            seen.append(Watched())
            return super().save()

    run = Soak(tmp_path / "out", *options, *COSINE)
    run.setup()
    run.train()
    assert run.progress.step == steps and len(seen) == 4
    seen[-1].check(seen[0])
