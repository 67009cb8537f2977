"""What a config.json of Qwen2.5-VL must say beside what every family's says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchtune_qwenvl.models import hf_config as shared

_VISION = (
    "depth", "hidden_size", "intermediate_size", "num_heads", "out_hidden_size", "patch_size",
    "spatial_merge_size", "temporal_patch_size", "window_size", "fullatt_block_indexes",
)  # fmt: skip


def normalise_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """See `torchtune_qwenvl.models.hf_config.normalise_config`."""
    config = shared.normalise_config(raw, vision=_VISION, rope_theta=1e6)
    vision = config["vision_config"]
    vision["tokens_per_second"] = raw["vision_config"].get("tokens_per_second", 4)
    vision["fullatt_block_indexes"] = list(vision["fullatt_block_indexes"])
    shared.check_activation(raw["vision_config"], "silu", "vision_config")
    shared.check_multiple(
        vision["hidden_size"], 4 * vision["num_heads"], "vision hidden_size over 4 * num_heads"
    )
    side = vision["patch_size"] * vision["spatial_merge_size"]
    shared.check_multiple(vision["window_size"], side, "window_size over patch_size * spatial_merge_size")
    shared.check_visual_width(vision["out_hidden_size"], "out_hidden_size", config["text_config"])
    shared.check_layers(vision["fullatt_block_indexes"], vision["depth"], "fullatt_block_indexes")
    return config
