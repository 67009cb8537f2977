"""One fine-tuning step of a mixture of experts against transformers, with the same weights and batch.

    python benchmarks/moe_step.py [--dtype fp32|bf16] [--repeats 7] [--threads 2] [--text]

The model is Qwen3-VL-30B-A3B at a quarter of its width, with 4 decoder layers of 128 experts, 8 per token,
and 3 encoder layers. Of the decoder weights that process a token, 60 % are experts, 30 % attention and 10 %
the head, as in the real model; the encoder has a fifth as many. Attention's share of the work is that of the
real model at four times the length. The batch has 8 rows of 256 image and 130 text tokens, 128 of each row
labelled: 193 tokens per expert. With `--text` there are no images and every token is labelled. transformers
uses its default implementation of experts. Each side has its own process, and they take turns.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import torch
from common import compare_steps, mean_loss, training_step

ROWS, IMAGE_TOKENS, TEXT_TOKENS, LABELLED = 8, 256, 130, 128
GRID = (1, 32, 32)  # patches; 2 x 2 of them make one token
VOCABULARY = 3200  # small, so that the head's share is that of the real model with its 48 layers
IMAGE_TOKEN, VISION_START, VISION_END = VOCABULARY - 1, VOCABULARY - 3, VOCABULARY - 4


def make_checkpoint(folder: Path) -> None:
    """Write a random checkpoint folder of the benchmark's size with transformers."""
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    config = Qwen3VLMoeConfig(
        text_config={
            "hidden_size": 512,
            "num_hidden_layers": 4,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "head_dim": 64,
            "intermediate_size": 1536,
            "moe_intermediate_size": 192,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "vocab_size": VOCABULARY,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [12, 10, 10]},
        },
        vision_config={
            "depth": 3,
            "hidden_size": 288,
            "intermediate_size": 1076,
            "num_heads": 4,
            "out_hidden_size": 512,
            "deepstack_visual_indexes": [1],
        },
        image_token_id=IMAGE_TOKEN,
        video_token_id=VOCABULARY - 2,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
    )
    torch.manual_seed(0)
    Qwen3VLMoeForConditionalGeneration(config).save_pretrained(folder)


def make_tokens(text: bool) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    length = IMAGE_TOKENS + TEXT_TOKENS
    tokens = torch.randint(0, VISION_END, (ROWS, length), generator=generator)
    if text:
        return tokens, tokens
    tokens[:, 0], tokens[:, 1 : IMAGE_TOKENS + 1] = VISION_START, IMAGE_TOKEN
    tokens[:, IMAGE_TOKENS + 1] = VISION_END
    labels = tokens.clone()
    labels[:, :-LABELLED] = -100
    return tokens, labels


def make_pixels() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    patches = ROWS * GRID[1] * GRID[2]
    return torch.randint(0, 256, (patches, 3 * 16 * 16), dtype=torch.uint8, generator=generator)


def reference_side(folder: Path, dtype: torch.dtype, text: bool = False):
    from transformers import Qwen3VLMoeForConditionalGeneration

    model = Qwen3VLMoeForConditionalGeneration.from_pretrained(folder, dtype=dtype).train()
    model.model.visual.requires_grad_(not text)
    tokens, labels = make_tokens(text)
    inputs = {"input_ids": tokens, "labels": labels, "attention_mask": torch.ones_like(tokens)}
    if not text:
        frames = (make_pixels().view(-1, 3, 1, 256) / 255 - 0.5) / 0.5
        inputs |= {
            "pixel_values": frames.expand(-1, 3, 2, 256).reshape(-1, 3 * 2 * 256).to(dtype),
            "image_grid_thw": torch.tensor([GRID] * ROWS),
            "mm_token_type_ids": (tokens == IMAGE_TOKEN).int(),
        }
    return training_step(model, lambda: model(**inputs).loss)


def our_side(folder: Path, dtype: torch.dtype, text: bool = False):
    from torchtune_qwenvl import load_model
    from torchtune_qwenvl.data import collate

    scale = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    modes = {"encoder_trainable": not text, "fusion_trainable": not text}
    model = load_model(folder, dtype=dtype, **scale, **modes).train()
    tokens, labels = make_tokens(text)
    pixels = make_pixels().chunk(ROWS)
    samples = [
        {
            "tokens": tokens[row].tolist(),
            "labels": labels[row].tolist(),
            "mask": (labels[row] == -100).tolist(),
            "input_pos": _positions(text),
            "encoder_input": {
                "vision": {
                    "images": [] if text else [pixels[row]],
                    "grid_thw": torch.tensor([] if text else [GRID], dtype=torch.int64).view(-1, 3),
                }
            },
        }
        for row in range(ROWS)
    ]
    batch = collate(samples, padding_idx=0, ignore_idx=-100)
    return training_step(model, lambda: mean_loss(model, batch))


def _positions(text: bool) -> torch.Tensor:
    """(t, h, w) of one text token, a block of 16 x 16 image tokens and more text; or of text only."""
    if text:
        return torch.arange(IMAGE_TOKENS + TEXT_TOKENS)[:, None].expand(-1, 3)
    places = torch.cartesian_prod(torch.tensor([0]), torch.arange(16), torch.arange(16)) + 1
    rest = torch.arange(17, 17 + TEXT_TOKENS - 1)[:, None].expand(-1, 3)
    return torch.cat([torch.zeros(1, 3, dtype=torch.int64), places, rest])


if __name__ == "__main__":
    text = "--text" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--text"]
    sides = (functools.partial(side, text=text) for side in (reference_side, our_side))
    compare_steps(__doc__, make_checkpoint, *sides)
