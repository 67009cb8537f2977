"""One training step of Qwen3.5 (forward, backward, fused AdamW) against transformers, as in training_step.py.

    PYTHONPATH=benchmarks python benchmarks/families/delta_net_step.py [--dtype fp32|bf16] [--threads 2]

The model has 8 decoder layers of width 512, six with a delta net and two with attention, the real vocabulary,
tied, and an encoder of 8 layers. The batch has 2 rows of 512 tokens: 256 image and 254 text tokens with the
marks of the image; 128 of each row are labelled. transformers computes delta nets by its torch code, as it
does on every CPU. Each side has its own process, and they take turns.
"""

from __future__ import annotations

from pathlib import Path

import torch
from common import compare_steps, mean_loss, training_step

ROWS, IMAGE_TOKENS, TEXT_TOKENS, LABELLED = 2, 256, 254, 128
GRID = (1, 32, 32)  # patches; 2 x 2 of them make one token
VOCABULARY, IMAGE_TOKEN, VISION_START, VISION_END = 248320, 248056, 248053, 248054
PATCH, MEAN = 16, [0.5] * 3


def make_checkpoint(folder: Path) -> None:
    """Write a random checkpoint folder of the benchmark's size with transformers."""
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    config = Qwen3_5Config(
        text_config={
            "hidden_size": 512,
            "intermediate_size": 1536,
            "num_hidden_layers": 8,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 128,
            "linear_num_key_heads": 4,
            "linear_num_value_heads": 8,
            "linear_key_head_dim": 128,
            "linear_value_head_dim": 128,
            "vocab_size": VOCABULARY,
            "rope_parameters": {
                **{"rope_type": "default", "rope_theta": 1e7, "mrope_section": [6, 5, 5]},
                "partial_rotary_factor": 0.25,
            },
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 8,
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_heads": 8,
            "out_hidden_size": 512,
            "patch_size": PATCH,
        },
        image_token_id=IMAGE_TOKEN,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    Qwen3_5ForConditionalGeneration(config).save_pretrained(folder)


def make_tokens() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 248044, (ROWS, IMAGE_TOKENS + TEXT_TOKENS + 2), generator=generator)
    tokens[:, 0], tokens[:, 1 : IMAGE_TOKENS + 1] = VISION_START, IMAGE_TOKEN
    tokens[:, IMAGE_TOKENS + 1] = VISION_END
    labels = tokens.clone()
    labels[:, :-LABELLED] = -100
    return tokens, labels


def make_pixels() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (ROWS * GRID[1] * GRID[2], 3 * PATCH * PATCH)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def reference_side(folder: Path, dtype: torch.dtype):
    from transformers import Qwen3_5ForConditionalGeneration

    model = Qwen3_5ForConditionalGeneration.from_pretrained(folder, dtype=dtype).train()
    tokens, labels = make_tokens()
    frames = (make_pixels().view(-1, 3, 1, PATCH * PATCH) / 255 - 0.5) / 0.5
    inputs = {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "labels": labels,
        "pixel_values": frames.expand(-1, 3, 2, PATCH * PATCH).flatten(1).to(dtype),
        "image_grid_thw": torch.tensor([GRID] * ROWS),
        "mm_token_type_ids": (tokens == IMAGE_TOKEN).int(),
    }
    return training_step(model, lambda: model(**inputs).loss)


def our_side(folder: Path, dtype: torch.dtype):
    from torchtune_qwenvl import load_model
    from torchtune_qwenvl.data import collate

    model = load_model(folder, dtype=dtype, image_mean=MEAN, image_std=MEAN).train()
    tokens, labels = make_tokens()
    samples = [
        {
            "tokens": row.tolist(),
            "labels": targets.tolist(),
            "mask": (targets == -100).tolist(),
            "input_pos": _positions(),
            "encoder_input": {"vision": {"images": [pixels], "grid_thw": torch.tensor([GRID])}},
        }
        for row, targets, pixels in zip(tokens, labels, make_pixels().chunk(ROWS), strict=True)
    ]
    batch = collate(samples, padding_idx=0, ignore_idx=-100)
    return training_step(model, lambda: mean_loss(model, batch))


def _positions() -> torch.Tensor:
    """(t, h, w) of one text token, a block of 16 x 16 image tokens and more text."""
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    image = torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1) + 1
    text = torch.arange(17, 17 + TEXT_TOKENS + 1).unsqueeze(1).expand(-1, 3)
    return torch.cat([torch.zeros(1, 3, dtype=torch.int64), image, text])


if __name__ == "__main__":
    compare_steps(__doc__, make_checkpoint, reference_side, our_side)
