"""Qwen2.5-VL of every published size, or of any size by its config.json."""

from __future__ import annotations

from torchtune_qwenvl.models.build import Slots, config_builder, published_sizes
from torchtune_qwenvl.models.qwen2_5_vl._component_builders import (
    qwen2_5_vl_decoder,
    qwen2_5_vl_vision_encoder,
)
from torchtune_qwenvl.models.qwen2_5_vl._hf_config import normalise_config, normalise_vision
from torchtune_qwenvl.models.qwen2_5_vl._sizes import IMAGE_MEAN, IMAGE_STD, published_config

SLOTS = Slots(
    normalise=normalise_config,
    normalise_vision=normalise_vision,
    vision_encoder=qwen2_5_vl_vision_encoder,
    decoder=qwen2_5_vl_decoder,
    vision={"window_size": "window_size", "full_attention": "fullatt_block_indexes"},
)

qwen2_5_vl_from_config = config_builder(
    SLOTS,
    "qwen2_5_vl_from_config",
    "Qwen2.5-VL of the size that a config.json describes, with random weights.",
    module=__name__,
)
_size = published_sizes(qwen2_5_vl_from_config, published_config, IMAGE_MEAN, IMAGE_STD)
qwen2_5_vl_3b = _size("qwen2_5_vl_3b", "3b", "Qwen2.5-VL-3B, 3,754,622,976 parameters, tied head.")
qwen2_5_vl_7b = _size("qwen2_5_vl_7b", "7b", "Qwen2.5-VL-7B, 8,292,166,656 parameters.")
qwen2_5_vl_32b = _size("qwen2_5_vl_32b", "32b", "Qwen2.5-VL-32B, 33,452,718,336 parameters.")
qwen2_5_vl_72b = _size("qwen2_5_vl_72b", "72b", "Qwen2.5-VL-72B, 73,410,777,344 parameters.")
