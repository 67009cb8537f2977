"""Qwen3-VL mixtures of experts of every published size, or of any by config.json."""

from __future__ import annotations

from torchtune_qwenvl.models.build import Slots, build_moe_model, config_builder, published_sizes
from torchtune_qwenvl.models.qwen3_vl._hf_config import normalise_vision
from torchtune_qwenvl.models.qwen3_vl._model_builders import TEXT, VISION
from torchtune_qwenvl.models.qwen3_vl_moe._component_builders import (
    qwen3_vl_moe_decoder,
    qwen3_vl_moe_vision_encoder,
)
from torchtune_qwenvl.models.qwen3_vl_moe._hf_config import normalise_config
from torchtune_qwenvl.models.qwen3_vl_moe._sizes import IMAGE_MEAN, IMAGE_STD, published_config

SLOTS = Slots(
    normalise=normalise_config,
    normalise_vision=normalise_vision,
    vision_encoder=qwen3_vl_moe_vision_encoder,
    decoder=qwen3_vl_moe_decoder,
    vision=VISION,
    text={
        **TEXT,
        "num_experts": "num_experts",
        "experts_per_token": "num_experts_per_tok",
        "expert_width": "moe_intermediate_size",
        "dense_layers": "dense_layers",
    },
)

qwen3_vl_moe_from_config = config_builder(
    SLOTS,
    "qwen3_vl_moe_from_config",
    "A Qwen3-VL mixture of experts of the size that a config.json describes, with random weights.",
    module=__name__,
    build=build_moe_model,
)
_size = published_sizes(qwen3_vl_moe_from_config, published_config, IMAGE_MEAN, IMAGE_STD)
qwen3_vl_30b_a3b = _size("qwen3_vl_30b_a3b", "30b_a3b", "Qwen3-VL-30B-A3B, 31,070,754,032 parameters.")
qwen3_vl_235b_a22b = _size(
    "qwen3_vl_235b_a22b", "235b_a22b", "Qwen3-VL-235B-A22B, 235,670,022,896 parameters."
)
