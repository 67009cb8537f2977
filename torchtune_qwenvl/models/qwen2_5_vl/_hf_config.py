"""What a config.json of Qwen2.5-VL must say beside what every family's says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchtune_qwenvl.models import hf_config as shared

_VISION = (
    "depth", "hidden_size", "intermediate_size", "num_heads", "out_hidden_size", "patch_size",
    "spatial_merge_size", "temporal_patch_size", "window_size", "fullatt_block_indexes",
)  # fmt: skip


def normalise_vision(raw: Mapping[str, Any]) -> dict[str, Any]:
    """See `torchtune_qwenvl.models.hf_config.normalise_vision`."""
    vision = shared.normalise_vision(raw, _VISION, activation="silu")
    vision["tokens_per_second"] = raw.get("tokens_per_second", 4)
    vision["fullatt_block_indexes"] = list(vision["fullatt_block_indexes"])
    side = vision["patch_size"] * vision["spatial_merge_size"]
    shared.check_multiple(vision["window_size"], side, "window_size over patch_size * spatial_merge_size")
    shared.check_layers(vision["fullatt_block_indexes"], vision["depth"], "fullatt_block_indexes")
    return vision


def normalise_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """See `torchtune_qwenvl.models.hf_config.normalise_config`."""
    config = shared.normalise_config(raw, vision=normalise_vision, rope_theta=1e6)
    width = config["vision_config"]["out_hidden_size"]
    shared.check_visual_width(width, "out_hidden_size", config["text_config"])
    return config
