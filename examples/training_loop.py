"""A training loop of your own: no recipe, no config.

    python examples/training_loop.py /tmp/Qwen2.5-VL-3B-Instruct data.jsonl tuned

It trains LoRA on the language model for one epoch and writes a folder that transformers loads.
"""

import sys

import torch
from torch.utils.data import DataLoader

from torchtune_qwenvl import load_model, load_transform, save_model
from torchtune_qwenvl.data import collate, vision_chat_dataset

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH_SIZE, LEARNING_RATE = 2, 2e-4
LORA = {
    "encoder_trainable": "frozen",
    "fusion_trainable": "frozen",
    "decoder_trainable": "lora",
    "lora_attn_modules": ["q_proj", "v_proj"],
    "lora_rank": 16,
    "lora_alpha": 32,
}


def main(folder: str, data: str, out: str) -> list[float]:
    """Train for one epoch and save the model; returns the mean loss per token of every step."""
    transform = load_transform(folder, dtype="uint8", max_seq_len=4096, max_pixels=1003520)
    dataset = vision_chat_dataset(transform, source=data)
    model = load_model(folder, dtype=torch.float32, device=DEVICE, **LORA).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE)
    batches = DataLoader(
        dataset,
        batch_size=BATCH_SIZE,
        shuffle=True,
        collate_fn=lambda samples: collate(samples, padding_idx=transform.pad_id),
    )
    losses = []
    for batch in batches:
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            loss_sum, n = model(**to_device(batch))
        (loss_sum / n).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append((loss_sum / n).item())
        print(f"step {len(losses)}: loss {losses[-1]:.4f}")
    save_model(model, out, source=folder)
    return losses


def to_device(batch: dict) -> dict:
    """The same batch with every tensor on the device."""
    return {name: to_device(x) if isinstance(x, dict) else x.to(DEVICE) for name, x in batch.items()}


if __name__ == "__main__":
    main(*sys.argv[1:])
