"""A tiny checkpoint folder, 16 conversations with and without images, and a config for both."""

import json
from pathlib import Path

import tiny

CONFIG = """\
checkpoint_dir: {folder}/checkpoint
dtype: fp32
num_workers: 0
batch_size: 2
max_steps_per_epoch: 4
optimizer:
  lr: 1.0e-3
model:
  _component_: torchtune_qwenvl.models.qwen2_5_vl.qwen2_5_vl_from_config
  config: ${{checkpoint_dir}}
dataset:
  _component_: torchtune_qwenvl.data.vision_chat_dataset
  source: {folder}/data.json
metric_logger:
  filename: log.txt
"""

# Rows alternate: without shuffling, one of two ranks gets only images and the other only text.
N_ROWS = 16


def image_row(i: int) -> dict:
    text = {"type": "text", "text": f"What is in image {i}?"}
    user = {"role": "user", "content": [{"type": "image", "path": f"{i}.png"}, text]}
    return {"messages": [user, {"role": "assistant", "content": "I see " + "abcdefgh"[i % 8] * (1 + i % 5)}]}


def text_row(i: int) -> dict:
    user = {"role": "user", "content": f"Say {i} twice."}
    return {"messages": [user, {"role": "assistant", "content": f"It is {i} and again {i}, in the end."}]}


def write_run(folder: Path) -> Path:
    """The config of a tiny run: 4 steps, full training. Its folder gets checkpoint/ and data.json."""
    tiny.save_tiny_folder(folder / "checkpoint")
    rows = [text_row(i) if i % 2 else image_row(i) for i in range(N_ROWS)]
    for i in range(0, N_ROWS, 2):
        tiny.photo(56 + 28 * (i % 3), 84 + 28 * (i % 5), seed=i).save(folder / f"{i}.png")
    (folder / "data.json").write_text(json.dumps(rows))
    (folder / "run.yaml").write_text(CONFIG.format(folder=folder))
    return folder / "run.yaml"
