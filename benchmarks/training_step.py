"""One training step (forward, backward, fused AdamW) against transformers, with the same weights and batch.

    python benchmarks/training_step.py [--dtype fp32|bf16] [--repeats 7] [--threads 2]

The model has 131 M parameters (ViT and decoder of 8 layers and width 512, the real vocabulary, tied). The
batch has 2 samples of 256 image and 130 text tokens with 256 labelled tokens in total. Each side has its own
process, and they take turns. The weights are in the compute dtype on both sides, so that the optimizer does
the same work.
"""

from __future__ import annotations

from pathlib import Path

import torch
from common import compare_steps, mean_loss, training_step

BATCH, IMAGE_TOKENS, TEXT_TOKENS, LABELLED = 2, 256, 130, 128
GRID = (1, 32, 32)  # patches; 2 x 2 of them make one token
IMAGE_TOKEN, VISION_START, VISION_END = 151655, 151652, 151653
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


def make_checkpoint(folder: Path) -> None:
    """Write a random checkpoint folder of the benchmark's size with transformers."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 512,
            "intermediate_size": 1376,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 8,
            "hidden_size": 512,
            "intermediate_size": 1376,
            "num_heads": 8,
            "out_hidden_size": 512,
            "fullatt_block_indexes": [1, 3, 5, 7],
        },
        image_token_id=IMAGE_TOKEN,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)


def make_tokens() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(0, 151643, (BATCH, TEXT_TOKENS - 2), generator=generator)
    image = torch.full((BATCH, IMAGE_TOKENS), IMAGE_TOKEN)
    start, end = torch.full((BATCH, 1), VISION_START), torch.full((BATCH, 1), VISION_END)
    tokens = torch.cat([start, image, end, text], dim=1)
    labels = tokens.clone()
    labels[:, :-LABELLED] = -100
    return tokens, labels


def make_pixels() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    patches = BATCH * GRID[1] * GRID[2]
    return torch.randint(0, 256, (patches, 3 * 14 * 14), dtype=torch.uint8, generator=generator)


def reference_side(folder: Path, dtype: torch.dtype):
    from transformers import Qwen2_5_VLForConditionalGeneration

    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=dtype).train()
    tokens, labels = make_tokens()
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    frames = (make_pixels().view(-1, 3, 1, 196) / 255 - mean) / std
    pixel_values = frames.expand(-1, 3, 2, 196).reshape(-1, 3 * 2 * 196).to(dtype)

    inputs = {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "labels": labels,
        "pixel_values": pixel_values,
        "image_grid_thw": torch.tensor([GRID] * BATCH),
        "mm_token_type_ids": (tokens == IMAGE_TOKEN).int(),
    }
    return training_step(model, lambda: model(**inputs).loss)


def our_side(folder: Path, dtype: torch.dtype):
    from torchtune_qwenvl import load_model
    from torchtune_qwenvl.data import collate

    model = load_model(folder, dtype=dtype, image_mean=MEAN, image_std=STD).train()
    tokens, labels = make_tokens()
    pixels = make_pixels().chunk(BATCH)
    samples = [
        {
            "tokens": tokens[row].tolist(),
            "labels": labels[row].tolist(),
            "mask": (labels[row] == -100).tolist(),
            "input_pos": _positions(),
            "encoder_input": {"vision": {"images": [pixels[row]], "grid_thw": torch.tensor([GRID])}},
        }
        for row in range(BATCH)
    ]
    batch = collate(samples, padding_idx=0, ignore_idx=-100)
    return training_step(model, lambda: mean_loss(model, batch))


def _positions() -> torch.Tensor:
    """(t, h, w) of one text token, a block of 16 x 16 image tokens and more text."""
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    image = torch.stack([torch.zeros(256, dtype=torch.int64), rows.flatten(), columns.flatten()], dim=1) + 1
    text = torch.arange(17, 17 + TEXT_TOKENS - 1).unsqueeze(1).expand(-1, 3)
    return torch.cat([torch.zeros(1, 3, dtype=torch.int64), image, text])


if __name__ == "__main__":
    compare_steps(__doc__, make_checkpoint, reference_side, our_side)
