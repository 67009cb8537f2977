"""JPEG files and conversations about them, and a folder with the tokenizer and image settings to read them.

The tokenizer is the demo's: it knows the chat format's tokens and bytes. What a model learns is not measured.
"""

import json
import random
from pathlib import Path

import numpy as np
from PIL import Image

from on_gpu.setting import Setting
from torchtune_qwenvl.demo import write_tiny_checkpoint

# Width and height in pixels of photographs, and the pixels that are left of a large one: 512 visual tokens,
# which is half of a conversation.
SIZES = ((1008, 1288), (1288, 952), (1232, 1792), (1736, 784))
TINY_SIZES = ((64, 96), (96, 64))
MAX_PIXELS, TINY_MAX_PIXELS = 512 * 28 * 28, 96 * 96
TOKENS = 1024  # of a conversation, about
LETTERS = "bcdfghjk"  # one token each


def write_folder(setting: Setting, patch: int) -> Path:
    """The checkpoint folder without the model that is measured: tokenizer and image settings."""
    folder = setting.folder / f"patch{patch}"
    if not (folder / "config.json").exists():
        write_tiny_checkpoint(str(folder))
        for name in ("config.json", "preprocessor_config.json"):
            content = json.loads((folder / name).read_text())
            where = content.get("vision_config", content)
            where["patch_size"] = patch
            if "window_size" in where:
                where["window_size"] = 8 * patch
            (folder / name).write_text(json.dumps(content))
    return folder


def write_conversations(setting: Setting) -> Path:
    """data.json with a photograph in seven of eight conversations, a quarter of the tokens in the answer."""
    path = setting.folder / "data.json"
    if path.exists():
        return path
    rng = random.Random(0)
    sizes = TINY_SIZES if setting.rehearse else SIZES
    count, length = setting.size(96, 8), setting.size(TOKENS, 160)
    records = []
    for number in range(count):
        content: list[dict[str, str]] = []
        visual = 0
        if number % 8 != 7:
            width, height = sizes[number % len(sizes)]
            _photograph(setting.folder / f"{number}.jpg", width, height, number)
            content.append({"type": "image", "path": f"{number}.jpg"})
            visual = min(width * height, setting.size(MAX_PIXELS, TINY_MAX_PIXELS)) // 28**2
        answer = length // 4
        question = max(8, length - visual - answer - 20)
        content.append({"type": "text", "text": "".join(rng.choices(LETTERS, k=question))})
        messages = [
            {"role": "user", "content": content},
            {"role": "assistant", "content": "".join(rng.choices(LETTERS, k=answer))},
        ]
        records.append({"messages": messages})
    path.write_text(json.dumps(records))
    return path


def _photograph(path: Path, width: int, height: int, seed: int) -> None:
    """Soft shapes with a little noise, which compress as photographs do."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noisy = np.asarray(smooth, dtype=np.int16) + rng.integers(-8, 9, (height, width, 3))
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)
