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
from torchtune_qwenvl.training.watch.flops import FlopCounter
from torchtune_qwenvl.training.watch.metrics import Work


def collate_for(model: VisionLanguageModel, padding_free: bool = False) -> Callable[..., dict[str, Any]]:
    """`collate` that also says where visual tokens stand; the model would look that up on the device."""
    visual_ids = (model.image_token_id, model.video_token_id)
    return partial(_collate, visual_ids=visual_ids, padding_free=padding_free)


def on_device(batch: Batch, device: torch.device) -> dict[str, Any]:
    """The model's arguments, copied without waiting.

    Grids and document lengths stay on the host, where they are needed.
    """
    vision, layout = batch.inputs["encoder_input"]["vision"], dict(batch.inputs["layout"])
    encoder_input = {"vision": {**vision, "grid_thw": vision["grid_thw"].tolist()}}
    if "document_lengths" in layout:
        layout["document_lengths"] = layout["document_lengths"].tolist()
    return _move({**batch.inputs, "encoder_input": encoder_input, "layout": layout}, device)


def work_of(batch: Batch, padding_idx: int, flops: FlopCounter, members: int = 0) -> Work:
    """What there is to do for a batch, counted on the host; of a mix of so many members, whose samples."""
    vision = batch.inputs["encoder_input"]["vision"]
    layout = batch.inputs["layout"]
    grids, labelled = vision["grid_thw"].tolist(), len(layout["labelled"])
    lengths = layout.get("document_lengths", (batch.inputs["tokens"] != padding_idx).sum(dim=1)).tolist()
    return Work(
        labelled=labelled,
        tokens=batch.tokens,
        images=len(grids),
        flops=flops(lengths, labelled, grids, vision["pixel_values"].shape[-1]),
        skipped=len(batch.skipped),
        dropped_turns=batch.dropped_turns,
        drawn=tuple(batch.drawn.get(member, 0) for member in range(members)),
        lost=tuple(batch.lost.get(member, 0) for member in range(members)),
    )


def _collate(
    samples: Sequence[Mapping[str, Any]],
    padding_idx: int,
    ignore_idx: int,
    visual_ids: tuple[int, int],
    padding_free: bool,
) -> dict[str, Any]:
    batch = collate(samples, padding_idx=padding_idx, ignore_idx=ignore_idx, padding_free=padding_free)
    tokens = batch["tokens"].flatten()
    is_visual = torch.isin(tokens, torch.tensor(visual_ids))
    batch["layout"]["visual"] = is_visual.nonzero().squeeze(1)
    return batch


def _move(tree: Any, device: torch.device) -> Any:
    if isinstance(tree, dict):
        return {key: _move(value, device) for key, value in tree.items()}
    return tree.to(device, non_blocking=True) if isinstance(tree, Tensor) else tree
