"""Qwen3-VL mixtures of experts: builders; the transform is `models.qwen3_vl`'s."""

from torchtune_qwenvl.models.qwen3_vl_moe._component_builders import (
    qwen3_vl_moe_decoder,
    qwen3_vl_moe_vision_encoder,
)
from torchtune_qwenvl.models.qwen3_vl_moe._model_builders import (
    qwen3_vl_30b_a3b,
    qwen3_vl_235b_a22b,
    qwen3_vl_moe_from_config,
)

__all__ = [
    "qwen3_vl_30b_a3b",
    "qwen3_vl_235b_a22b",
    "qwen3_vl_moe_decoder",
    "qwen3_vl_moe_from_config",
    "qwen3_vl_moe_vision_encoder",
]
