"""What a config.json of GLM-4.1V must say in addition to what every family's says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchtune_qwenvl.models import hf_config as shared

RULES = shared.ConfigRules(
    top=(),
    vision=(*shared.VISION, "image_size", "rms_norm_eps"),
    vision_activation="silu",
    rope_theta=1e4,
)


def normalise_vision(raw: Mapping[str, Any], rules: shared.ConfigRules = RULES) -> dict[str, Any]:
    """See `torchtune_qwenvl.models.hf_config.normalise_vision`."""
    vision = shared.normalise_vision(raw, rules)
    vision["attention_bias"] = bool(raw.get("attention_bias", False))
    shared.check_multiple(vision["image_size"], vision["patch_size"], "image_size over patch_size")
    return vision


def normalise_config(raw: Mapping[str, Any], rules: shared.ConfigRules = RULES) -> dict[str, Any]:
    """See `torchtune_qwenvl.models.hf_config.normalise_config`."""
    config = shared.normalise_config(raw, rules, normalise_vision)
    config["video_token_id"] = config["image_token_id"]  # in the text, a clip's frames are written as images
    return config
