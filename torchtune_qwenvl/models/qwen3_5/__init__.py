"""Qwen3.5: builders and transform; also Qwen3.6 and Qwen3.8 of the same architecture."""

from torchtune_qwenvl.models.qwen3_5._component_builders import qwen3_5_decoder, qwen3_5_vision_encoder
from torchtune_qwenvl.models.qwen3_5._model_builders import (
    qwen3_5_0_8b,
    qwen3_5_2b,
    qwen3_5_4b,
    qwen3_5_9b,
    qwen3_5_27b,
    qwen3_5_from_config,
)
from torchtune_qwenvl.models.qwen3_5._transform import (
    Qwen3_5Transform,
    load_qwen3_5_transform,
    qwen3_5_transform,
)

__all__ = [
    "Qwen3_5Transform",
    "load_qwen3_5_transform",
    "qwen3_5_0_8b",
    "qwen3_5_2b",
    "qwen3_5_4b",
    "qwen3_5_9b",
    "qwen3_5_27b",
    "qwen3_5_decoder",
    "qwen3_5_from_config",
    "qwen3_5_transform",
    "qwen3_5_vision_encoder",
]
