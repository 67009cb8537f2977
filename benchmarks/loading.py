"""Measure how much memory rises while a checkpoint folder of several shards is loaded, against transformers.

    python benchmarks/loading.py [--gb 2.2] [--shard 500MB] [--side ours|reference] [--folder checkpoint]

A random bf16 model of the given size is written once. Each side loads it in a new process, which samples
RssAnon (the process's own memory without mapped files) every millisecond. The rise is the peak minus the
value after the imports.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing as mp
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import describe_machine

WIDTH, VOCABULARY = 1024, 32768


def make_checkpoint(folder: Path, gigabytes: float, shard: str) -> None:
    """Write a random bf16 checkpoint folder of about `gigabytes`, by its number of decoder layers."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    in_layer = WIDTH * (2 * WIDTH + 2 * 256) + 3 * WIDTH * 4 * WIDTH
    layers = max(2, round((gigabytes * 1e9 / 2 - 2 * VOCABULARY * WIDTH) / in_layer))
    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": WIDTH,
            "intermediate_size": 4 * WIDTH,
            "num_hidden_layers": layers,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "vocab_size": VOCABULARY,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
            "bos_token_id": None,
            "eos_token_id": None,
        },
        vision_config={"depth": 2, "hidden_size": 512, "out_hidden_size": WIDTH, "num_heads": 8},
        image_token_id=1,
        video_token_id=2,
        vision_start_token_id=3,
        vision_end_token_id=4,
    )
    config.vision_config.fullatt_block_indexes = [1]
    torch.set_default_dtype(torch.bfloat16)
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.save_pretrained(folder, max_shard_size=shard)


def anonymous_bytes() -> int:
    """RssAnon of this process in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


def rise_during(load: Callable[[], object]) -> int:
    """Rise of RssAnon to its peak while `load` runs; what `load` returns is kept until the end."""
    before, peak, done = anonymous_bytes(), [0], threading.Event()

    def sample() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], anonymous_bytes())
            time.sleep(0.001)

    sampler = threading.Thread(target=sample)
    sampler.start()
    kept = load()
    after = anonymous_bytes()
    done.set()
    sampler.join()
    assert kept is not None
    return max(peak[0], after) - before


def ours(folder: Path) -> int:
    from torchtune_qwenvl.checkpoints.loading import load_model

    return rise_during(functools.partial(load_model, folder))


def reference(folder: Path) -> int:
    from transformers import Qwen2_5_VLForConditionalGeneration

    load = functools.partial(Qwen2_5_VLForConditionalGeneration.from_pretrained, folder, dtype="auto")
    return rise_during(load)


SIDES = {"ours": ours, "reference": reference}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gb", type=float, default=2.2, help="size of the weights")
    parser.add_argument("--shard", default="500MB", help="largest file")
    parser.add_argument("--side", choices=SIDES, action="append", help="both when left out")
    parser.add_argument("--folder", type=Path, help="load this checkpoint instead of a random one")
    arguments = parser.parse_args()
    print(describe_machine(torch.get_num_threads()))
    print("| side | weights MB | files | rise of RssAnon MB | rise / weights |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        context = mp.get_context("spawn")
        with context.Pool(1, maxtasksperchild=1) as pool:
            if arguments.folder is None:
                pool.apply(make_checkpoint, (folder, arguments.gb, arguments.shard))
            files = list(folder.glob("*.safetensors"))
            weights = sum(file.stat().st_size for file in files)
            for side in arguments.side or SIDES:
                rise = pool.apply(SIDES[side], (folder,))
                megabytes = f"{weights / 1e6:.0f} | {len(files)} | {rise / 1e6:.0f}"
                print(f"| {side} | {megabytes} | {rise / weights:.3f} |", flush=True)


if __name__ == "__main__":
    main()
