"""Qwen2.5-VL: builders and transform."""

from torchtune_qwenvl.models.qwen2_5_vl._component_builders import (
    qwen2_5_vl_decoder,
    qwen2_5_vl_vision_encoder,
)
from torchtune_qwenvl.models.qwen2_5_vl._model_builders import (
    qwen2_5_vl_3b,
    qwen2_5_vl_7b,
    qwen2_5_vl_32b,
    qwen2_5_vl_72b,
    qwen2_5_vl_from_config,
)
from torchtune_qwenvl.models.qwen2_5_vl._transform import (
    Qwen2_5_VLImageTransform,
    Qwen2_5_VLTransform,
    load_qwen2_5_vl_transform,
    qwen2_5_vl_transform,
)
from torchtune_qwenvl.models.qwen2_5_vl._video import Qwen2_5_VLVideoTransform

__all__ = [
    "Qwen2_5_VLImageTransform",
    "Qwen2_5_VLTransform",
    "Qwen2_5_VLVideoTransform",
    "load_qwen2_5_vl_transform",
    "qwen2_5_vl_3b",
    "qwen2_5_vl_7b",
    "qwen2_5_vl_32b",
    "qwen2_5_vl_72b",
    "qwen2_5_vl_decoder",
    "qwen2_5_vl_from_config",
    "qwen2_5_vl_transform",
    "qwen2_5_vl_vision_encoder",
]
