"""Qwen3-VL of every published dense size, or of any by its config.json."""

from __future__ import annotations

import math

from torchtune_qwenvl.models.build import Entries, Slots, config_builder, published_sizes
from torchtune_qwenvl.models.qwen3_vl._component_builders import qwen3_vl_decoder, qwen3_vl_vision_encoder
from torchtune_qwenvl.models.qwen3_vl._hf_config import normalise_config, normalise_vision
from torchtune_qwenvl.models.qwen3_vl._sizes import IMAGE_MEAN, IMAGE_STD, published_config

VISION: Entries = {
    "deepstack_layers": "deepstack_visual_indexes",
    "position_side": lambda vision: math.isqrt(vision["num_position_embeddings"]),
}
TEXT: Entries = {"head_dim": "head_dim"}
SLOTS = Slots(
    normalise=normalise_config,
    normalise_vision=normalise_vision,
    vision_encoder=qwen3_vl_vision_encoder,
    decoder=qwen3_vl_decoder,
    vision=VISION,
    text=TEXT,
)

qwen3_vl_from_config = config_builder(
    SLOTS,
    "qwen3_vl_from_config",
    "Qwen3-VL of the size that a config.json describes, with random weights.",
    module=__name__,
)
_size = published_sizes(qwen3_vl_from_config, published_config, IMAGE_MEAN, IMAGE_STD)
qwen3_vl_2b = _size("qwen3_vl_2b", "2b", "Qwen3-VL-2B, 2,127,532,032 parameters, tied head.")
qwen3_vl_4b = _size("qwen3_vl_4b", "4b", "Qwen3-VL-4B, 4,437,815,808 parameters, tied head.")
qwen3_vl_8b = _size("qwen3_vl_8b", "8b", "Qwen3-VL-8B, 8,767,123,696 parameters.")
qwen3_vl_32b = _size("qwen3_vl_32b", "32b", "Qwen3-VL-32B, 33,357,390,064 parameters.")
