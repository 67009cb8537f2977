"""Compare padded with padding-free batches of the same samples, and measure how full packed rows are.

    python benchmarks/packing.py [--device cuda|cpu] [--dtype bf16|fp32] [--batch-size 8] [--repeats 10]

Forward and backward run in turns for both kinds of batches, in one process with one model. Lengths are
log-normal (median 400 tokens, mean about 800 in rows of 8k, scaled to the device), once with text only and
once with an image in every other sample. Compare the share of time saved with padding's share of the
positions and of the work (as counted by `FlopCounter`). Images and labelled positions are never padded and
cost the same on both sides; attention over padding costs more than its share of the positions. The fastest
repeat of each side counts. With one thread on a CPU its CPU time is measured. Both are affected less by other
programs.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from typing import Any

import torch
from common import compare, describe_machine
from torch.utils.data import Dataset

from torchtune_qwenvl.data import Packer, StreamSampler, collate
from torchtune_qwenvl.data.streams.dataset import as_streamed
from torchtune_qwenvl.data.streams.stream import Share
from torchtune_qwenvl.models.qwen2_5_vl import qwen2_5_vl_from_config
from torchtune_qwenvl.modules.batch import on_device
from torchtune_qwenvl.training.watch.flops import FlopCounter
from torchtune_qwenvl.transforms.size import SampleSize

SIZES = {
    "cuda": {"width": 2048, "layers": 12, "heads": 16, "inner": 8192, "longest": 4096},
    "cpu": {"width": 512, "layers": 6, "heads": 8, "inner": 1536, "longest": 512},
}
# Small, because there are few layers: on the CPU, head and layers have 2.1 and 17.7 M weights, a ratio of 1
# to 8 (Qwen2.5-VL-3B: 1 to 9).
VOCABULARY = 4096
IMAGE_TOKEN, VISION_START, VISION_END = VOCABULARY - 3, VOCABULARY - 2, VOCABULARY - 1
VISION_WIDTH, PATCH = 256, 14
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def long_tailed(rng: random.Random, longest: int) -> int:
    """Draw the number of tokens of a conversation."""
    return max(8, min(int(rng.lognormvariate(6.0, 1.2) * longest / 8192 * 2), longest))


def make_model(size: dict[str, int], device: str, dtype: torch.dtype) -> torch.nn.Module:
    """A random Qwen2.5-VL whose vision encoder is as small relative to the decoder as in real models."""
    head_dim = size["width"] // size["heads"]
    config = {
        "model_type": "qwen2_5_vl",
        "hidden_size": size["width"],
        "intermediate_size": size["inner"],
        "num_hidden_layers": size["layers"],
        "num_attention_heads": size["heads"],
        "num_key_value_heads": max(1, size["heads"] // 8),
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_scaling": {"type": "mrope", "mrope_section": [head_dim // 8, *[head_dim * 3 // 16] * 2]},
        "tie_word_embeddings": True,
        "image_token_id": IMAGE_TOKEN,
        "video_token_id": IMAGE_TOKEN - 1,
        "vision_start_token_id": VISION_START,
        "vision_end_token_id": VISION_END,
        "vision_config": {
            "depth": 2,
            "hidden_size": VISION_WIDTH,
            "intermediate_size": 2 * VISION_WIDTH,
            "num_heads": 4,
            "out_hidden_size": size["width"],
            "fullatt_block_indexes": [1],
            "window_size": 112,
            "patch_size": PATCH,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "in_chans": 3,
            "hidden_act": "silu",
            "tokens_per_second": 2,
        },
        "hidden_act": "silu",
    }
    statistics = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    model = qwen2_5_vl_from_config(config, **statistics)
    torch.nn.init.normal_(model.decoder.tok_embeddings.weight, std=0.02)
    return model.to(device, dtype).train()


def make_sample(rng: random.Random, length: int, image: bool) -> dict[str, Any]:
    """`length` tokens, the last quarter labelled; with an image of 8 x 8 visual tokens if it fits."""
    image = image and length > 80
    tokens = [rng.randrange(VOCABULARY - 8) for _ in range(length)]
    images, grids = [], torch.empty(0, 3, dtype=torch.int64)
    if image:
        tokens[1:67] = [VISION_START, *[IMAGE_TOKEN] * 64, VISION_END]
        images = [torch.randint(0, 256, (256, 3 * PATCH * PATCH), dtype=torch.uint8)]
        grids = torch.tensor([[1, 16, 16]])
    labelled = length - max(1, length // 4)
    return {
        "tokens": tokens,
        "mask": [i < labelled for i in range(length)],
        "input_pos": torch.arange(length)[:, None].repeat(1, 3),
        "encoder_input": {"vision": {"images": images, "grid_thw": grids}},
    }


def compare_batches(arguments: argparse.Namespace, images: bool) -> None:
    """Print a row with padding's shares, the times, and the losses, which must be equal."""
    device, size = arguments.device, SIZES[arguments.device]
    rng = random.Random(0)
    torch.manual_seed(0)
    model = make_model(size, device, DTYPES[arguments.dtype])
    batches: dict[str, list] = {"padded": [], "padding-free": []}
    lengths: dict[str, list[list[int]]] = {"padded": [], "padding-free": []}
    for _ in range(arguments.batches):
        drawn = [long_tailed(rng, size["longest"]) for _ in range(arguments.batch_size)]
        samples = [make_sample(rng, length, images and i % 2 == 0) for i, length in enumerate(drawn)]
        for side, free in (("padded", False), ("padding-free", True)):
            inputs = collate(samples, padding_free=free, placeholders=[IMAGE_TOKEN])
            batches[side].append(on_device(inputs, device))
        lengths["padding-free"].append(drawn)
        lengths["padded"].append([max(drawn)] * len(drawn))
    losses = {}

    def run(side: str) -> None:
        total = 0.0
        for batch in batches[side]:
            loss, n = model(**batch)
            (loss / n).backward()
            total += (loss / n).item()
            model.zero_grad()
        losses[side] = total / len(batches[side])

    sides = {side: (lambda side=side: run(side)) for side in batches}
    own_time = device == "cpu" and arguments.threads == 1
    clock = time.process_time if own_time else time.perf_counter
    seconds = compare(sides, arguments.repeats, clock=clock, summary=min)
    positions = {side: sum(map(sum, rows)) for side, rows in lengths.items()}
    work = {side: sum(map(work_counter(model), rows, batches[side])) for side, rows in lengths.items()}
    shares = [f"{1 - of['padding-free'] / of['padded']:.1%}" for of in (positions, work, seconds)]
    print(
        f"| {'images and text' if images else 'text'} | {' | '.join(shares)} "
        f"| {1e3 * seconds['padded']:.0f} | {1e3 * seconds['padding-free']:.0f} "
        f"| {seconds['padded'] / seconds['padding-free']:.2f} "
        f"| {losses['padded']:.4f} {losses['padding-free']:.4f} |",
        flush=True,
    )


def work_counter(model: torch.nn.Module) -> Callable[[list[int], dict[str, Any]], float]:
    """A function (lengths of rows or documents, batch) -> operations of forward and backward."""
    count = FlopCounter(model)

    def work(lengths: list[int], batch: dict[str, Any]) -> float:
        vision = batch["encoder_input"]["vision"]
        patch_width = vision["pixel_values"].shape[-1]
        return count(lengths, len(batch["layout"]["labelled"]), vision["grid_thw"], patch_width)

    return work


def report_efficiency(rows_of: int = 8192, samples: int = 100_000) -> None:
    """Print how full rows are with and without looking ahead."""
    rng = random.Random(1)
    lengths = [max(8, min(int(rng.lognormvariate(6.0, 1.2)), rows_of)) for _ in range(samples)]
    print(f"\n{samples} samples of {sum(lengths) / samples:.0f} tokens on average in rows of {rows_of}:\n")
    print("| look-ahead | rows | tokens / positions |\n|---|---|---|")
    rows, room = 1, rows_of
    for length in lengths:
        if length > room:
            rows, room = rows + 1, rows_of
        room -= length
    print(f"| none: in order | {rows} | {sum(lengths) / rows_of / rows:.2%} |")
    for look_ahead in (256, 1024, 4096):
        packer = Packer[int](rows_of, lengths.__getitem__, look_ahead=look_ahead, multiple=8)
        rows = sum(map(len, packer(range(samples))))
        print(f"| {look_ahead} | {rows} | {sum(lengths) / rows_of / rows:.2%} |")
    stream = StreamSampler(as_streamed(Lengths(lengths)), Share(), pack_to=rows_of, in_process=False)
    rows = sum(1 for _ in stream)
    print(f"| a stream, 1000 samples or 64 rows | {rows} | {sum(lengths) / rows_of / rows:.2%} |")


class Lengths(Dataset):
    """A dataset of samples that have a length and no content."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def size(self, index: int) -> SampleSize:
        return SampleSize(self.lengths[index], 0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=SIZES, default=default)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16" if default == "cuda" else "fp32")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(describe_machine(arguments.threads) + "\n")
    print("| batches of | padding | of the work | time saved | padded ms | free ms | speed-up | losses |")
    print("|---|---|---|---|---|---|---|---|")
    for images in (False, True):
        compare_batches(arguments, images)
    report_efficiency()


if __name__ == "__main__":
    main()
