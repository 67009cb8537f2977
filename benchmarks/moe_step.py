"""One training step of a mixture of experts beside transformers' on the same weights and tokens.

    python benchmarks/moe_step.py [--dtype fp32|bf16] [--repeats 7] [--threads 2]

A Qwen3-VL decoder of 4 layers and width 512 with 32 experts of width 256, 4 per token; 2 rows of 256 text
tokens, all labelled. transformers runs its default implementation of experts. Each side is a process of its
own and tells its peak memory; they take turns.
"""

from __future__ import annotations

from pathlib import Path

import torch
from common import compare_steps

ROWS, TOKENS, VOCABULARY = 2, 256, 8192


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


if __name__ == "__main__":
    compare_steps(__doc__, make_checkpoint, reference_side, our_side)
