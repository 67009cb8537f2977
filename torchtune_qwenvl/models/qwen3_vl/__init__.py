"""Qwen3-VL: builders and transform."""

from torchtune_qwenvl.models.qwen3_vl._component_builders import qwen3_vl_decoder, qwen3_vl_vision_encoder
from torchtune_qwenvl.models.qwen3_vl._model_builders import (
    qwen3_vl_2b,
    qwen3_vl_4b,
    qwen3_vl_8b,
    qwen3_vl_32b,
    qwen3_vl_from_config,
)
from torchtune_qwenvl.models.qwen3_vl._transform import (
    Qwen3VLImageTransform,
    Qwen3VLTransform,
    load_qwen3_vl_transform,
    qwen3_vl_transform,
)
from torchtune_qwenvl.models.qwen3_vl._video import Qwen3VLVideoTransform

__all__ = [
    "Qwen3VLImageTransform",
    "Qwen3VLTransform",
    "Qwen3VLVideoTransform",
    "load_qwen3_vl_transform",
    "qwen3_vl_2b",
    "qwen3_vl_4b",
    "qwen3_vl_8b",
    "qwen3_vl_32b",
    "qwen3_vl_decoder",
    "qwen3_vl_from_config",
    "qwen3_vl_transform",
    "qwen3_vl_vision_encoder",
]
