"""One training step of a mixture of experts beside transformers' on the same weights and tokens.

    python benchmarks/moe_step.py [--dtype fp32|bf16] [--repeats 7] [--threads 2]

A Qwen3-VL decoder of 4 layers and width 512 with 32 experts of width 256, 4 per token; 2 rows of 256 text
tokens, all labelled. transformers runs its default implementation of experts. Each side is a process of its
own and tells its peak memory; they take turns.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from pathlib import Path

import torch
from common import compare_processes, describe_machine

ROWS, TOKENS, VOCABULARY = 2, 256, 8192
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def make_checkpoint(folder: Path) -> None:
    """A random checkpoint folder of the benchmark's size, written by transformers."""
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    config = Qwen3VLMoeConfig(
        text_config={
            "hidden_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "intermediate_size": 1024,
            "moe_intermediate_size": 256,
            "num_experts": 32,
            "num_experts_per_tok": 4,
            "vocab_size": VOCABULARY,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [12, 10, 10]},
        },
        vision_config={
            "depth": 1,
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_heads": 4,
            "out_hidden_size": 512,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=VOCABULARY - 1,
        video_token_id=VOCABULARY - 2,
        vision_start_token_id=VOCABULARY - 3,
        vision_end_token_id=VOCABULARY - 4,
    )
    torch.manual_seed(0)
    Qwen3VLMoeForConditionalGeneration(config).save_pretrained(folder)


def make_tokens() -> torch.Tensor:
    return torch.randint(0, VOCABULARY - 4, (ROWS, TOKENS), generator=torch.Generator().manual_seed(0))


def reference_side(folder: Path, dtype: torch.dtype):
    from transformers import Qwen3VLMoeForConditionalGeneration

    model = Qwen3VLMoeForConditionalGeneration.from_pretrained(folder, dtype=dtype).train()
    model.model.visual.requires_grad_(False)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=True)
    tokens = make_tokens()

    def run() -> float:
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return run


def our_side(folder: Path, dtype: torch.dtype):
    from torchtune_qwenvl import load_model

    frozen = {"encoder_trainable": "frozen", "fusion_trainable": "frozen"}
    model = load_model(folder, dtype=dtype, **frozen).train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=True)
    tokens = make_tokens()

    def run() -> float:
        loss_sum, n = model(tokens, labels=tokens)
        loss = loss_sum / n
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
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


if __name__ == "__main__":
    main()
