"""What a config.json of Qwen3-VL must say in addition to what every family's says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torchtune_qwenvl.models import hf_config as shared

RULES = shared.ConfigRules(
    text=("head_dim",),
    vision=(*shared.VISION, "num_position_embeddings", "deepstack_visual_indexes"),
    vision_activation="gelu_pytorch_tanh",
    layer_list="deepstack_visual_indexes",
)


def normalise_vision(raw: Mapping[str, Any]) -> dict[str, Any]:
    """See `torchtune_qwenvl.models.hf_config.normalise_vision`."""
    vision = shared.normalise_vision(raw, RULES)
    positions = vision["num_position_embeddings"]
    if math.isqrt(positions) ** 2 != positions:
        raise ValueError(f"config.json: num_position_embeddings {positions}: expected a square number")
    return vision


def normalise_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """See `torchtune_qwenvl.models.hf_config.normalise_config`."""
    config = shared.normalise_config(raw, RULES, normalise_vision)
    text, vision = config["text_config"], config["vision_config"]
    if (raw.get("text_config") or raw).get("attention_bias"):
        raise ValueError("config.json (text): attention_bias is true, which is not supported")
    if text["rope_parameters"].get("mrope_interleaved") is False:
        raise ValueError("config.json: mrope_interleaved is false, which no Qwen3-VL is")
    deepstack = vision["deepstack_visual_indexes"]
    if len(deepstack) > text["num_hidden_layers"]:
        raise ValueError(
            f"config.json: {len(deepstack)} deepstack_visual_indexes for "
            f"{text['num_hidden_layers']} decoder layers"
        )
    return config
