"""What the recipe needs to know of a batch before the model gets it: its visual tokens and its work.

b rows, s tokens per row, m images.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torchtune_qwenvl.data import collate
from torchtune_qwenvl.data.loader import Batch
from torchtune_qwenvl.modules.batch import BatchLayout
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel
from torchtune_qwenvl.training.watch.flops import FlopCounter
from torchtune_qwenvl.training.watch.metrics import Work


def collate_for(model: VisionLanguageModel, padding_free: bool = False) -> Callable[..., dict[str, Any]]:
    """`collate` that finds the visual tokens of any sample: cheaper than in the model, on the device."""
    return partial(collate, placeholders=model.placeholders, padding_free=padding_free)


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
    lengths = layout.document_lengths
    if lengths is None:
        lengths = (batch.inputs["tokens"] != padding_idx).sum(dim=1)
    return Work(
        labelled=labelled,
        tokens=batch.tokens,
        images=len(grids),
        flops=flops([int(length) for length in lengths], labelled, grids, vision["pixel_values"].shape[-1]),
        skipped=len(batch.skipped),
        dropped_turns=batch.dropped_turns,
        drawn=tuple(batch.drawn.get(member, 0) for member in range(members)),
        lost=tuple(batch.lost.get(member, 0) for member in range(members)),
    )
