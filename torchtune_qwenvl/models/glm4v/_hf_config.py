"""What config.json of GLM-4.1V has beside that of other families; see `models/hf_config.py`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torchtune_qwenvl.models import hf_config as _hf_config

_VISION = (
    "depth", "hidden_size", "intermediate_size", "num_heads", "out_hidden_size", "patch_size",
    "spatial_merge_size", "temporal_patch_size", "image_size", "rms_norm_eps",
)  # fmt: skip


def normalise_config(raw: Mapping[str, Any], text: Collection[str] = ()) -> dict[str, Any]:
    """The nested form of either config.json, with what the model needs and nothing else.

    Args:
        raw: the parsed config.json.
        text: entries of the text part needed beside those of the dense models.

    Raises:
        ValueError: naming the entry that is missing, does not fit or is not supported, and what came.
    """
    config = _hf_config.normalise_config(raw, top=(), text=text, vision=_VISION, rope_theta=1e4)
    config["video_token_id"] = config["image_token_id"]  # frames of a clip stand as images in the text
    vision = config["vision_config"]
    given = raw["vision_config"]
    vision["attention_bias"] = bool(given.get("attention_bias", False))
    _hf_config.check_activation(given, "silu", "vision_config")
    _hf_config.check_multiple(
        vision["hidden_size"], 4 * vision["num_heads"], "vision hidden_size over 4 * num_heads"
    )
    _hf_config.check_multiple(vision["image_size"], vision["patch_size"], "image_size over patch_size")
    _hf_config.check_visual_width(vision["out_hidden_size"], "out_hidden_size", config["text_config"])
    return config
