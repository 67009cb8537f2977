"""Qwen2-VL of every published size, or of any size by its config.json."""

from __future__ import annotations

from torchtune_qwenvl.models.build import Slots, config_builder, published_sizes
from torchtune_qwenvl.models.qwen2_vl._component_builders import qwen2_vl_decoder, qwen2_vl_vision_encoder
from torchtune_qwenvl.models.qwen2_vl._hf_config import normalise_config, normalise_vision
from torchtune_qwenvl.models.qwen2_vl._sizes import IMAGE_MEAN, IMAGE_STD, published_config

SLOTS = Slots(
    normalise=normalise_config,
    normalise_vision=normalise_vision,
    vision_encoder=qwen2_vl_vision_encoder,
    decoder=qwen2_vl_decoder,
    vision={
        "width": "embed_dim",
        "inner_width": lambda vision: int(vision["embed_dim"] * vision["mlp_ratio"]),
        "out_width": "hidden_size",
    },
)

qwen2_vl_from_config = config_builder(
    SLOTS,
    "qwen2_vl_from_config",
    "Qwen2-VL of the size that a config.json describes, with random weights.",
    module=__name__,
)
_size = published_sizes(qwen2_vl_from_config, published_config, IMAGE_MEAN, IMAGE_STD)
qwen2_vl_2b = _size("qwen2_vl_2b", "2b", "Qwen2-VL-2B, 2,208,985,600 parameters, tied head.")
qwen2_vl_7b = _size("qwen2_vl_7b", "7b", "Qwen2-VL-7B, 8,291,375,616 parameters.")
qwen2_vl_72b = _size("qwen2_vl_72b", "72b", "Qwen2-VL-72B, 73,405,560,320 parameters.")
