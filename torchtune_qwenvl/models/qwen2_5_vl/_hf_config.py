"""What a config.json of Qwen2.5-VL must say in addition to what every family's says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchtune_qwenvl.models import hf_config as shared

# Of transformers' Qwen2_5_VLVisionConfig: release 4.49 writes only what differs from these.
_VISION_DEFAULTS = {
    "depth": 32,
    "hidden_size": 3584,
    "intermediate_size": 3420,
    "num_heads": 16,
    "out_hidden_size": 3584,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "tokens_per_second": 4,
    "window_size": 112,
    "fullatt_block_indexes": (7, 15, 23, 31),
}
RULES = shared.ConfigRules(
    vision=(*shared.VISION, "window_size", "fullatt_block_indexes", "tokens_per_second"),
    vision_defaults=_VISION_DEFAULTS,
    vision_activation="silu",
    layer_list="fullatt_block_indexes",
    rope_theta=1e6,
)


def normalise_vision(raw: Mapping[str, Any]) -> dict[str, Any]:
    """See `torchtune_qwenvl.models.hf_config.normalise_vision`."""
    vision = shared.normalise_vision(raw, RULES)
    side = vision["patch_size"] * vision["spatial_merge_size"]
    shared.check_multiple(vision["window_size"], side, "window_size over patch_size * spatial_merge_size")
    return vision


def normalise_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """See `torchtune_qwenvl.models.hf_config.normalise_config`."""
    return shared.normalise_config(raw, RULES, normalise_vision)
