"""Qwen2.5-VL of every published size, or of any size by its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchtune_qwenvl.arguments import takes_arguments_of
from torchtune_qwenvl.models.build import Slots, build_model, published_sizes
from torchtune_qwenvl.models.qwen2_5_vl._component_builders import (
    qwen2_5_vl_decoder,
    qwen2_5_vl_vision_encoder,
)
from torchtune_qwenvl.models.qwen2_5_vl._hf_config import normalise_config, normalise_vision
from torchtune_qwenvl.models.qwen2_5_vl._sizes import IMAGE_MEAN, IMAGE_STD, published_config
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel

SLOTS = Slots(
    normalise=normalise_config,
    normalise_vision=normalise_vision,
    vision_encoder=qwen2_5_vl_vision_encoder,
    decoder=qwen2_5_vl_decoder,
    vision={"window_size": "window_size", "full_attention": "fullatt_block_indexes"},
)


@takes_arguments_of(build_model)
def qwen2_5_vl_from_config(config: Mapping[str, Any] | str | Path, **arguments: Any) -> VisionLanguageModel:
    """Qwen2.5-VL of the size that a config.json describes, with random weights: see `build_model`."""
    return build_model(SLOTS, config, **arguments)


_size = published_sizes(qwen2_5_vl_from_config, published_config, IMAGE_MEAN, IMAGE_STD)
qwen2_5_vl_3b = _size("qwen2_5_vl_3b", "3b", "Qwen2.5-VL-3B, 3,754,622,976 parameters, tied head.")
qwen2_5_vl_7b = _size("qwen2_5_vl_7b", "7b", "Qwen2.5-VL-7B, 8,292,166,656 parameters.")
qwen2_5_vl_32b = _size("qwen2_5_vl_32b", "32b", "Qwen2.5-VL-32B, 33,452,718,336 parameters.")
qwen2_5_vl_72b = _size("qwen2_5_vl_72b", "72b", "Qwen2.5-VL-72B, 73,410,777,344 parameters.")
