"""Qwen3.5 mixtures of experts of every published size, or of any by config.json."""

from __future__ import annotations

from torchtune_qwenvl.models.build import Slots, config_builder, published_sizes
from torchtune_qwenvl.models.prediction import predicting
from torchtune_qwenvl.models.qwen3_5._hf_config import normalise_vision
from torchtune_qwenvl.models.qwen3_5._model_builders import TEXT, VISION
from torchtune_qwenvl.models.qwen3_5_moe._component_builders import (
    moe_prediction_layers,
    qwen3_5_moe_decoder,
    qwen3_5_moe_vision_encoder,
)
from torchtune_qwenvl.models.qwen3_5_moe._hf_config import normalise_config
from torchtune_qwenvl.models.qwen3_5_moe._sizes import IMAGE_MEAN, IMAGE_STD, published_config

SLOTS = Slots(
    normalise=normalise_config,
    normalise_vision=normalise_vision,
    vision_encoder=qwen3_5_moe_vision_encoder,
    decoder=qwen3_5_moe_decoder,
    vision=VISION,
    text={
        **TEXT,
        "num_experts": "num_experts",
        "experts_per_token": "num_experts_per_tok",
        "expert_width": "moe_intermediate_size",
        "shared_width": "shared_expert_intermediate_size",
    },
)

qwen3_5_moe_from_config = config_builder(
    SLOTS,
    "qwen3_5_moe_from_config",
    "A Qwen3.5 mixture of experts of the size that a config.json describes, with random weights.",
    module=__name__,
    build=predicting(moe_prediction_layers, experts=True),
)
_size = published_sizes(qwen3_5_moe_from_config, published_config, IMAGE_MEAN, IMAGE_STD)
qwen3_5_35b_a3b = _size("qwen3_5_35b_a3b", "35b_a3b", "Qwen3.5-35B-A3B.")
qwen3_5_122b_a10b = _size("qwen3_5_122b_a10b", "122b_a10b", "Qwen3.5-122B-A10B.")
qwen3_5_397b_a17b = _size("qwen3_5_397b_a17b", "397b_a17b", "Qwen3.5-397B-A17B.")
