"""Compare two models by their logits on a small prompt, without an image and with one.

`tune-qwenvl export` checks its work with this: what it wrote is loaded again and compared with what trained.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchtune.data import Message

from torchtune_qwenvl.checkpoints.adapters.peft_import import adapter_arguments, load_adapter
from torchtune_qwenvl.checkpoints.folder import CheckpointFolder
from torchtune_qwenvl.checkpoints.loading import load_model
from torchtune_qwenvl.data import collate
from torchtune_qwenvl.models import load_transform
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel

# Largest difference relative to the norm of the logits. Written in fp32, the same numbers are computed again.
# Written in bf16, every merged weight is rounded by up to 2^-9 of itself, which adds up over the layers.
ALLOWED = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


@torch.no_grad()
def logits_of(model: VisionLanguageModel, transform: Any) -> list[Tensor]:
    """Logits [s, v] of both prompts, on the CPU.

    Args:
        model: in eval mode, on its device.
        transform: the transform of the model's folder.
    """
    device = next(model.parameters()).device
    found = []
    for images in ([], [_picture()]):
        parts = [{"type": "image", "content": image} for image in images]
        user = Message("user", [*parts, {"type": "text", "content": "Describe what you see."}])
        batch = collate([transform({"messages": [user]}, inference=True)], padding_idx=transform.pad_id)
        vision = batch["encoder_input"]["vision"]
        vision = {"pixel_values": vision["pixel_values"].to(device), "grid_thw": vision["grid_thw"]}
        moved = {"tokens": batch["tokens"].to(device), "input_pos": batch["input_pos"].to(device)}
        found.append(model(**moved, encoder_input={"vision": vision})[0].float().cpu())
    return found


def difference(expected: list[Tensor], got: list[Tensor]) -> float:
    """Norm of the difference over the norm of what was expected; the larger value of the two prompts."""
    pairs = zip(expected, got, strict=True)
    return float(torch.stack([(b - a).norm() / a.norm() for a, b in pairs]).max())  # NaN where one is NaN


def compare_model(folder: Path, source: Path, expected: list[Tensor], device: str) -> str:
    """Load a merged folder and compare; returns a sentence with the size of the difference.

    Raises:
        ValueError: the difference is larger than the folder's dtype explains.
    """
    with CheckpointFolder(folder) as files:
        dtypes = {entry.dtype for _, entry in files.entries()}
    dtype = torch.float32 if dtypes == {torch.float32} else torch.bfloat16
    return _judge(folder, load_model(folder, torch.float32, device), source, expected, dtype)


def compare_adapter(folder: Path, source: Path, expected: list[Tensor], device: str) -> str:
    """`compare_model` for an adapter folder, loaded onto its source."""
    model = load_model(source, torch.float32, device, **adapter_arguments(folder, source))
    return _judge(folder, load_adapter(model, folder), source, expected, torch.float32)


def _judge(
    folder: Path, model: VisionLanguageModel, source: Path, expected: list[Tensor], dtype: torch.dtype
) -> str:
    found = difference(expected, logits_of(model.eval(), load_transform(source)))
    name = str(dtype).removeprefix("torch.")
    if not found <= ALLOWED[dtype]:  # also refuses NaN
        raise ValueError(
            f"{folder}: loaded again, its logits differ by {found:.1e} of their norm from the trained ones; "
            f"{ALLOWED[dtype]:g} is what {name} explains. Do not use it, and report this."
        )
    return f"loaded again, logits differ by {found:.1e} of their norm ({name} allows {ALLOWED[dtype]:g})"


def _picture() -> np.ndarray:
    """uint8 [84, 112, 3] with colours that run both ways."""
    rows, columns = np.mgrid[0:84, 0:112]
    return np.stack([rows * 3, columns * 2, (rows * columns) % 256], axis=-1).astype(np.uint8)
