"""Odd values in records of all styles: a right sample, or a bad sample that says where; never anything else.

Every value of good records of every style is replaced by odd ones (types, half characters, NaN, huge numbers,
deep nesting, loops of links), records are changed at random, and lines of JSON are damaged.
"""

import random
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from faults.campaign import campaign_seed, campaign_size
from record_sets.odd import GOOD, broken_line, mutated, replaced

from torchtune_qwenvl import load_transform
from torchtune_qwenvl.data import Guarded, SkippedSample, collate
from torchtune_qwenvl.data.records.chat_reader import ChatReader
from torchtune_qwenvl.data.records.media import MediaFinder
from torchtune_qwenvl.data.records.messages import MessageParser
from torchtune_qwenvl.data.samples import Item
from torchtune_qwenvl.data.streams.dataset import ChatItems

FAMILIES = ("qwen3_vl", "qwen2_vl", "qwen2_5_vl", "glm4v", "glm4v_moe")[: campaign_size(1, 5)]
SECONDS = 20


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for seed, name in enumerate(("a.png", "b.png")):
        tiny.photo(30, 44, seed=seed).save(folder / name)
    (folder / "loop.png").symlink_to(folder / "loop.png")
    return folder


@pytest.fixture(scope="module", params=FAMILIES)
def samples(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ChatItems:
    checkpoint = tiny.save_tiny_folder(tmp_path_factory.mktemp("fuzz") / "model", family=request.param)
    transform = load_transform(checkpoint, max_seq_len=2048, max_pixels=20000)
    return ChatItems(ChatReader(MessageParser(), MediaFinder(), transform))


def outcome(samples: ChatItems, record: Any, images: Path) -> str:
    """ "sample", or the reason why there is none; asserts that nothing else comes of the record."""
    item, start = Item(record, 3, "data.jsonl, sample 3", images), time.monotonic()
    guarded = Guarded(samples, "skip", "skip")
    sample, size = guarded[item], guarded.size(item)
    assert time.monotonic() - start < SECONDS
    if isinstance(sample, SkippedSample):
        assert sample.reason.startswith("data.jsonl, sample 3: ") and sample.reason.isprintable
        sample.reason.encode()  # can be logged and written
        return sample.reason
    assert size.tokens == len(sample["tokens"]) == len(sample["labels"])
    batch = collate([sample])
    assert batch["encoder_input"]["vision"]["pixel_values"].shape[0] == size.patches
    assert torch.isfinite(batch["layout"].get("weights", torch.zeros(1))).all()
    return "sample"


def test_the_good_records_are_samples(samples: ChatItems, images: Path) -> None:
    for name, record in GOOD.items():
        reason = outcome(samples, record, images)
        assert reason == "sample" or "tool" in name, (name, reason)  # some templates know no tools


def test_odd_values_are_named_or_read(samples: ChatItems, images: Path) -> None:
    rng = random.Random(campaign_seed())
    every = list(replaced())
    cases = rng.sample(every, min(len(every), campaign_size(2300, len(every))))
    cases += [mutated(rng) for _ in range(campaign_size(500, 3000))]
    cases += [("a damaged line", broken_line(rng)) for _ in range(campaign_size(300, 1500))]
    reasons = [(place, outcome(samples, record, images)) for place, record in cases]
    assert [(place, reason) for place, reason in reasons if "an error of the code" in reason] == []
    good = sum(reason == "sample" for _, reason in reasons)
    print(f"{len(cases)} records: {good} samples, {len(cases) - good} bad")
    assert len(cases) >= 3000 and len(cases) // 20 < good < len(cases) // 2
