"""Qwen3.5 of every published dense size, or of any by its config.json."""

from __future__ import annotations

import math

from torchtune_qwenvl.models.build import Entries, Slots, config_builder, published_sizes
from torchtune_qwenvl.models.prediction import predicting
from torchtune_qwenvl.models.qwen3_5._component_builders import (
    prediction_layers,
    qwen3_5_decoder,
    qwen3_5_vision_encoder,
)
from torchtune_qwenvl.models.qwen3_5._hf_config import normalise_config, normalise_vision
from torchtune_qwenvl.models.qwen3_5._sizes import IMAGE_MEAN, IMAGE_STD, published_config
from torchtune_qwenvl.models.rope_config import rotary_width

VISION: Entries = {"position_side": lambda vision: math.isqrt(vision["num_position_embeddings"])}
TEXT: Entries = {
    "head_dim": "head_dim",
    "rotary_dim": rotary_width,
    "layer_types": "layer_types",
    "key_heads": "linear_num_key_heads",
    "value_heads": "linear_num_value_heads",
    "key_width": "linear_key_head_dim",
    "value_width": "linear_value_head_dim",
    "taps": "linear_conv_kernel_dim",
}
SLOTS = Slots(
    normalise=normalise_config,
    normalise_vision=normalise_vision,
    vision_encoder=qwen3_5_vision_encoder,
    decoder=qwen3_5_decoder,
    vision=VISION,
    text=TEXT,
)

qwen3_5_from_config = config_builder(
    SLOTS,
    "qwen3_5_from_config",
    "Qwen3.5 of the size that a config.json describes, with random weights.",
    module=__name__,
    build=predicting(prediction_layers),
)
_size = published_sizes(qwen3_5_from_config, published_config, IMAGE_MEAN, IMAGE_STD)
qwen3_5_0_8b = _size("qwen3_5_0_8b", "0.8b", "Qwen3.5-0.8B, tied head.")
qwen3_5_2b = _size("qwen3_5_2b", "2b", "Qwen3.5-2B, tied head.")
qwen3_5_4b = _size("qwen3_5_4b", "4b", "Qwen3.5-4B, tied head.")
qwen3_5_9b = _size("qwen3_5_9b", "9b", "Qwen3.5-9B.")
qwen3_5_27b = _size("qwen3_5_27b", "27b", "Qwen3.5-27B; 3.6 and 3.8 of this size have the same architecture.")
