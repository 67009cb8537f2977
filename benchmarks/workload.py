"""Write a checkpoint folder of any size, conversations of any length and a config, to benchmark the recipe.

The benchmarks then measure everything from the command line to the optimizer.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import save_file

from torchtune_qwenvl.demo import write_tiny_checkpoint
from torchtune_qwenvl.demo.checkpoint import random_weights

CONFIG = """\
checkpoint_dir: {folder}/checkpoint
output_dir: {folder}/out
num_workers: 0
model:
  _component_: torchtune_qwenvl.models.qwen2_5_vl.qwen2_5_vl_from_config
  config: ${{checkpoint_dir}}
dataset:
  _component_: torchtune_qwenvl.data.vision_chat_dataset
  source: {folder}/data.json
"""


def write_checkpoint(folder: Path, text: dict[str, Any], vision: dict[str, Any]) -> None:
    """Write the demo's checkpoint with changes to its config.json; text entries are at the top level."""
    write_tiny_checkpoint(str(folder))
    config = json.loads((folder / "config.json").read_text())
    config |= text
    config["vision_config"] |= vision
    (folder / "config.json").write_text(json.dumps(config))
    weights = {name: tensor.bfloat16() for name, tensor in random_weights(config, seed=0).items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def write_workload(
    folder: Path, rows: Sequence[tuple[int, int]], text: dict[str, Any], vision: dict[str, Any]
) -> Path:
    """Write checkpoint, data and config; returns the config's path.

    Args:
        folder: the folder to write to.
        rows: (side of the image in pixels, or 0; letters of the answer, one token each) of each conversation.
        text: changes to config.json.
        vision: changes to its vision_config.
    """
    write_checkpoint(folder / "checkpoint", text, vision)
    letters, records = random.Random(0), []
    for number, (side, length) in enumerate(rows):
        content = [{"type": "text", "text": "?"}]
        if side:
            noise = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / f"{number}.png")
            content.insert(0, {"type": "image", "path": f"{number}.png", "max_pixels": side * side})
        answer = "".join(letters.choices("bcdfghjk", k=length))
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
        records.append({"messages": messages})
    (folder / "data.json").write_text(json.dumps(records))
    (folder / "run.yaml").write_text(CONFIG.format(folder=folder))
    return folder / "run.yaml"
