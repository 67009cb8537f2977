"""What a config.json of Qwen2-VL must say beside what every family's says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchtune_qwenvl.models import hf_config as shared

# Of transformers' Qwen2VLVisionConfig: what it writes is only what differs from these.
_VISION_DEFAULTS = {
    "depth": 32,
    "embed_dim": 1280,
    "mlp_ratio": 4,
    "num_heads": 16,
    "hidden_size": 3584,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}


def normalise_vision(raw: Mapping[str, Any]) -> dict[str, Any]:
    """See `torchtune_qwenvl.models.hf_config.normalise_vision`; `hidden_size` is a visual token's width."""
    return shared.normalise_vision(
        raw, _VISION_DEFAULTS, activation="quick_gelu", width="embed_dim", defaults=_VISION_DEFAULTS
    )


def normalise_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """See `torchtune_qwenvl.models.hf_config.normalise_config`."""
    config = shared.normalise_config(raw, vision=normalise_vision, rope_theta=1e6)
    width = config["vision_config"]["hidden_size"]
    shared.check_visual_width(width, "hidden_size of vision_config", config["text_config"])
    return config
