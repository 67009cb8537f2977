"""What a config.json of Qwen3-VL must say beside what every family's says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torchtune_qwenvl.models import hf_config as shared

_VISION = (
    "depth", "hidden_size", "intermediate_size", "num_heads", "out_hidden_size", "patch_size",
    "spatial_merge_size", "temporal_patch_size", "num_position_embeddings", "deepstack_visual_indexes",
)  # fmt: skip


def normalise_vision(raw: Mapping[str, Any]) -> dict[str, Any]:
    """See `torchtune_qwenvl.models.hf_config.normalise_vision`."""
    vision = shared.normalise_vision(raw, _VISION, activation="gelu_pytorch_tanh")
    vision["deepstack_visual_indexes"] = list(vision["deepstack_visual_indexes"])
    shared.check_layers(vision["deepstack_visual_indexes"], vision["depth"], "deepstack_visual_indexes")
    positions = vision["num_position_embeddings"]
    if math.isqrt(positions) ** 2 != positions:
        raise ValueError(f"config.json: num_position_embeddings {positions}: expected a square number")
    return vision


def normalise_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """See `torchtune_qwenvl.models.hf_config.normalise_config`."""
    config = shared.normalise_config(raw, text=("head_dim",), vision=normalise_vision)
    text, vision = config["text_config"], config["vision_config"]
    raw_text = raw.get("text_config") or raw
    if raw_text.get("attention_bias"):
        raise ValueError("config.json (text): attention_bias is true, which is not supported")
    if text["rope_parameters"].get("mrope_interleaved") is False:
        raise ValueError("config.json: mrope_interleaved is false, which no Qwen3-VL is")
    shared.check_visual_width(vision["out_hidden_size"], "out_hidden_size", text)
    if len(vision["deepstack_visual_indexes"]) > text["num_hidden_layers"]:
        raise ValueError(
            f"config.json: {len(vision['deepstack_visual_indexes'])} deepstack_visual_indexes for "
            f"{text['num_hidden_layers']} decoder layers"
        )
    return config
