"""Builders of models that also train their multi-token prediction layers, see `modules.prediction`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchtune_qwenvl.arguments import takes_arguments_of
from torchtune_qwenvl.models.build import Config, Slots, build_model, build_moe_model
from torchtune_qwenvl.modules.prediction import MultiTokenPrediction
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel

# A normalised config -> the prediction layers.
Predictor = Callable[[Config], MultiTokenPrediction]


def predicting(predictor: Predictor, *, experts: bool = False) -> Callable[..., VisionLanguageModel]:
    """`build_model` with two more arguments.

    Args:
        predictor: makes the family's prediction layers.
        experts: `build_moe_model` instead.
    """
    build = build_moe_model if experts else build_model

    @takes_arguments_of(build)
    def build_predicting(
        slots: Slots,
        config: Config | str | Path,
        *,
        mtp_trainable: bool = False,
        mtp_loss_weight: float = 0.1,
        **arguments: Any,
    ) -> VisionLanguageModel:
        """A model of the size that a config.json describes, with random weights.

        Args:
            slots: the family's.
            config: the parsed config.json in its published or its transformers 5 form, its path or folder.
            mtp_trainable: train the multi-token prediction layers `mtp.*`. False: they are not loaded, and
                saved folders get those of the source unchanged.
            mtp_loss_weight: weight of their loss, relative to the mean loss of a token.
        """
        model = build(slots, config, **arguments)
        if mtp_trainable:
            _check(model, mtp_loss_weight)
            model.set_predictor(predictor(model.config), mtp_loss_weight)
        return model

    return build_predicting


def _check(model: VisionLanguageModel, weight: float) -> None:
    layers = model.config["text_config"]["mtp_num_hidden_layers"]
    if layers != 1:
        raise ValueError(
            f"mtp_trainable: config.json says mtp_num_hidden_layers {layers}, expected 1: set it to false"
        )
    if not weight > 0:
        raise ValueError(f"mtp_loss_weight: expected a number above 0, got {weight}")
