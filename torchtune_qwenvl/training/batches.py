"""A batch on its way to the device: everything that would make the host wait for the device is read before.

b rows, s tokens per row, m images.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torchtune_qwenvl.data import collate
from torchtune_qwenvl.data.loader import Batch
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel
from torchtune_qwenvl.training.flops import FlopCounter
from torchtune_qwenvl.training.metrics import Work


def collate_for(model: VisionLanguageModel) -> Callable[..., dict[str, Any]]:
    """`collate` that also says where visual tokens stand; the model would look that up on the device."""
    return partial(_collate, visual_ids=(model.image_token_id, model.video_token_id))


def on_device(batch: Batch, device: torch.device) -> dict[str, Any]:
    """The model's arguments, copied without waiting; grids stay on the host, where they are needed."""
    vision = batch.inputs["encoder_input"]["vision"]
    encoder_input = {"vision": {**vision, "grid_thw": vision["grid_thw"].tolist()}}
    return _move({**batch.inputs, "encoder_input": encoder_input}, device)


def work_of(batch: Batch, padding_idx: int, flops: FlopCounter) -> Work:
    """What there is to do for a batch, counted on the host."""
    vision = batch.inputs["encoder_input"]["vision"]
    grids, labelled = vision["grid_thw"].tolist(), len(batch.inputs["layout"]["labelled"])
    lengths = (batch.inputs["tokens"] != padding_idx).sum(dim=1).tolist()
    return Work(
        labelled=labelled,
        tokens=batch.tokens,
        images=len(grids),
        flops=flops(lengths, labelled, grids, vision["pixel_values"].shape[-1]),
        skipped=len(batch.skipped),
        dropped_turns=batch.dropped_turns,
    )


def _collate(
    samples: Sequence[Mapping[str, Any]], padding_idx: int, ignore_idx: int, visual_ids: tuple[int, int]
) -> dict[str, Any]:
    batch = collate(samples, padding_idx=padding_idx, ignore_idx=ignore_idx)
    tokens = batch["tokens"].flatten()
    is_visual = torch.isin(tokens, torch.tensor(visual_ids))
    batch["layout"]["visual"] = is_visual.nonzero().squeeze(1)
    return batch


def _move(tree: Any, device: torch.device) -> Any:
    if isinstance(tree, dict):
        return {key: _move(value, device) for key, value in tree.items()}
    return tree.to(device, non_blocking=True) if isinstance(tree, Tensor) else tree
