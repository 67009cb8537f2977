"""Qwen2-VL: builders and transform."""

from torchtune_qwenvl.models.qwen2_vl._component_builders import qwen2_vl_decoder, qwen2_vl_vision_encoder
from torchtune_qwenvl.models.qwen2_vl._model_builders import (
    qwen2_vl_2b,
    qwen2_vl_7b,
    qwen2_vl_72b,
    qwen2_vl_from_config,
)
from torchtune_qwenvl.models.qwen2_vl._transform import (
    Qwen2VLImageTransform,
    Qwen2VLTransform,
    load_qwen2_vl_transform,
    qwen2_vl_transform,
)
from torchtune_qwenvl.models.qwen2_vl._video import Qwen2VLVideoTransform

__all__ = [
    "Qwen2VLImageTransform",
    "Qwen2VLTransform",
    "Qwen2VLVideoTransform",
    "load_qwen2_vl_transform",
    "qwen2_vl_2b",
    "qwen2_vl_7b",
    "qwen2_vl_72b",
    "qwen2_vl_decoder",
    "qwen2_vl_from_config",
    "qwen2_vl_transform",
    "qwen2_vl_vision_encoder",
]
