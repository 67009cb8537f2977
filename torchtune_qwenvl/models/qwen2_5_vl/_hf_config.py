"""What a config.json of Qwen2.5-VL must say in addition to what every family's says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchtune_qwenvl.models import hf_config as shared

RULES = shared.ConfigRules(
    vision=(*shared.VISION, "window_size", "fullatt_block_indexes"),
    vision_activation="silu",
    layer_list="fullatt_block_indexes",
    rope_theta=1e6,
)


def normalise_vision(raw: Mapping[str, Any]) -> dict[str, Any]:
    """See `torchtune_qwenvl.models.hf_config.normalise_vision`."""
    vision = shared.normalise_vision(raw, RULES)
    vision["tokens_per_second"] = raw.get("tokens_per_second", 4)
    side = vision["patch_size"] * vision["spatial_merge_size"]
    shared.check_multiple(vision["window_size"], side, "window_size over patch_size * spatial_merge_size")
    return vision


def normalise_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """See `torchtune_qwenvl.models.hf_config.normalise_config`."""
    return shared.normalise_config(raw, RULES, normalise_vision)
