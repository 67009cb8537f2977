"""What config.json of GLM-4.1V has beside that of other families; see `models/hf_config.py`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torchtune_qwenvl.models import hf_config as shared

_VISION = (
    "depth", "hidden_size", "intermediate_size", "num_heads", "out_hidden_size", "patch_size",
    "spatial_merge_size", "temporal_patch_size", "image_size", "rms_norm_eps",
)  # fmt: skip


def normalise_vision(raw: Mapping[str, Any]) -> dict[str, Any]:
    """See `torchtune_qwenvl.models.hf_config.normalise_vision`."""
    vision = shared.normalise_vision(raw, _VISION, activation="silu")
    vision["attention_bias"] = bool(raw.get("attention_bias", False))
    shared.check_multiple(vision["image_size"], vision["patch_size"], "image_size over patch_size")
    return vision


def normalise_config(raw: Mapping[str, Any], text: Collection[str] = ()) -> dict[str, Any]:
    """The nested form of either config.json, with what the model needs and nothing else.

    Args:
        raw: the parsed config.json.
        text: entries of the text part needed beside those of the dense models.

    Raises:
        ValueError: naming the entry that is missing, does not fit or is not supported, and what came.
    """
    config = shared.normalise_config(raw, top=(), text=text, vision=normalise_vision, rope_theta=1e4)
    config["video_token_id"] = config["image_token_id"]  # frames of a clip stand as images in the text
    width = config["vision_config"]["out_hidden_size"]
    shared.check_visual_width(width, "out_hidden_size", config["text_config"])
    return config
