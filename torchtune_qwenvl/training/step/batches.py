"""What the recipe needs to know of a batch before the model gets it: its visual tokens and its work.

b rows, s tokens per row, m images.
"""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from torchtune_qwenvl.data import collate
from torchtune_qwenvl.data.collate import plan_for
from torchtune_qwenvl.data.loader import Batch
from torchtune_qwenvl.modules.batch import BatchLayout, labelled_positions, placeholder_positions
from torchtune_qwenvl.modules.vision.plan import VisionPlanner
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel
from torchtune_qwenvl.training.watch.flops import FlopCounter
from torchtune_qwenvl.training.watch.metrics import Work


def collate_for(
    model: VisionLanguageModel, padding_free: bool = False, own: Callable[..., dict[str, Any]] = collate
) -> Callable[..., dict[str, Any]]:
    """A collate function that finds visual and labelled tokens: cheaper than in the model, on the device.

    Args:
        model: for its placeholders of visual tokens.
        padding_free: see `collate`.
        own: another function than `collate`: (samples, padding_idx=…, ignore_idx=…) -> the model's arguments;
            with `padding_free` it takes that, too.

    Raises:
        ValueError: `padding_free` for a function that does not take it.
    """
    planner = model.vision_encoder.planner
    if own is collate:
        return partial(collate, placeholders=model.placeholders, padding_free=padding_free, planner=planner)
    if padding_free and "padding_free" not in inspect.signature(own).parameters:
        raise ValueError(
            f"collate_fn {own.__qualname__} has no argument padding_free: add it, and pass it on to "
            "torchtune_qwenvl.data.collate, or leave pack_to and padding_free out"
        )
    given = {"padding_free": True} if padding_free else {}
    return partial(
        _complete,
        own=partial(own, **given),
        name=own.__qualname__,
        placeholders=model.placeholders,
        planner=planner,
    )


def _complete(
    samples: Sequence[Mapping[str, Any]],
    padding_idx: int,
    ignore_idx: int,
    *,
    own: Callable[..., dict[str, Any]],
    name: str,
    placeholders: Collection[int],
    planner: VisionPlanner,
) -> dict[str, Any]:
    """The batch of a collate function of the user's, with a layout and a plan that fit what is in it."""
    batch = own(samples, padding_idx=padding_idx, ignore_idx=ignore_idx)
    needed = ("tokens", "labels", "input_pos", "encoder_input")
    if not isinstance(batch, dict) or any(key not in batch for key in needed):
        keys = sorted(batch) if isinstance(batch, dict) else type(batch).__name__
        raise ValueError(f"collate_fn {name}: expected a dict with {', '.join(needed)}, got {keys}")
    layout = BatchLayout.from_dict(batch.get("layout"))
    fitting = replace(
        layout,
        labelled=labelled_positions(batch["labels"], ignore_idx),
        visual=placeholder_positions(batch["tokens"], placeholders),
    )
    vision = (batch["encoder_input"] or {}).get("vision")
    if vision is not None:
        vision = {**vision, "plan": plan_for(planner, vision["grid_thw"])}
        batch = {**batch, "encoder_input": {**batch["encoder_input"], "vision": vision}}
    return {**batch, "layout": fitting.as_dict()}


def work_of(batch: Batch, padding_idx: int, flops: FlopCounter, members: int = 0) -> Work:
    """Count a batch's work on the host, per dataset if datasets are mixed.

    Args:
        batch: of one rank.
        padding_idx: pad token id.
        flops: of the model.
        members: number of datasets that are mixed.
    """
    vision = batch.inputs["encoder_input"]["vision"]
    layout = BatchLayout.from_dict(batch.inputs["layout"])
    assert layout.labelled is not None
    grids, labelled = vision["grid_thw"].tolist(), len(layout.labelled)
    weights = layout.weights_of(layout.labelled)
    lengths = layout.document_lengths
    if lengths is None:
        lengths = (batch.inputs["tokens"] != padding_idx).sum(dim=1)
    return Work(
        labelled=labelled if weights is None else weights.sum(dtype=torch.float64).item(),
        tokens=batch.tokens,
        images=len(grids),
        flops=flops([int(length) for length in lengths], labelled, grids, vision["pixel_values"].shape[-1]),
        skipped=len(batch.skipped),
        dropped_turns=batch.dropped_turns,
        samples=batch.samples,
        drawn=tuple(batch.drawn.get(member, 0) for member in range(members)),
        lost=tuple(batch.lost.get(member, 0) for member in range(members)),
    )
