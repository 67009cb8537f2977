"""What the rest of the package knows of a model family: five entries, found by config.json's model_type."""

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
        slots: how config.json becomes an encoder and a decoder.
        from_config: (config.json as a dict, *, image_mean, image_std, **builder arguments) -> model.
        weights: the files' tensor names and ours.
    transform: class of the transforms of its checkpoints.
    """

    model_type: str
    slots: Slots
    from_config: Callable[..., VisionLanguageModel]
    weights: WeightTable
    transform: type[PublishedTransform]
