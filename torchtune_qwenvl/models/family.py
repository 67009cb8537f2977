"""What a model family is to the rest of the package: four entries, found by config.json's model_type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torchtune_qwenvl.models.build import Slots
from torchtune_qwenvl.models.published_transform import PublishedTransform
from torchtune_qwenvl.models.weight_table import WeightTable
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel


@dataclass(frozen=True)
class Family:
    """One family of checkpoints.

    Attributes:
        model_type: as config.json has it.
        slots: what its config.json means.
        from_config: (config.json as a dict, *, image_mean, image_std, **builder arguments) -> model.
        weights: names of the files' tensors beside ours.
        transform: class of the transforms of its checkpoints.
    """

    model_type: str
    slots: Slots
    from_config: Callable[..., VisionLanguageModel]
    weights: WeightTable
    transform: type[PublishedTransform]
