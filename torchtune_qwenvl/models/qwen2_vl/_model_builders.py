"""Qwen2-VL of every published size, or of any size by its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchtune_qwenvl.arguments import takes_arguments_of
from torchtune_qwenvl.models.build import Slots, build_model, published_sizes
from torchtune_qwenvl.models.qwen2_vl._component_builders import qwen2_vl_decoder, qwen2_vl_vision_encoder
from torchtune_qwenvl.models.qwen2_vl._hf_config import normalise_config, normalise_vision
from torchtune_qwenvl.models.qwen2_vl._sizes import IMAGE_MEAN, IMAGE_STD, published_config
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel

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


@takes_arguments_of(build_model)
def qwen2_vl_from_config(config: Mapping[str, Any] | str | Path, **arguments: Any) -> VisionLanguageModel:
    """Qwen2-VL of the size that a config.json describes, with random weights: see `build_model`."""
    return build_model(SLOTS, config, **arguments)


_size = published_sizes(qwen2_vl_from_config, published_config, IMAGE_MEAN, IMAGE_STD)
qwen2_vl_2b = _size("qwen2_vl_2b", "2b", "Qwen2-VL-2B, 2,208,985,600 parameters, tied head.")
qwen2_vl_7b = _size("qwen2_vl_7b", "7b", "Qwen2-VL-7B, 8,291,375,616 parameters.")
qwen2_vl_72b = _size("qwen2_vl_72b", "72b", "Qwen2-VL-72B, 73,405,560,320 parameters.")
