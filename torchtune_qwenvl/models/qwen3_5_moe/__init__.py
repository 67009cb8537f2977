"""Qwen3.5's mixtures of experts: builders; the transform is `models.qwen3_5`'s."""

from torchtune_qwenvl.models.qwen3_5_moe._component_builders import (
    qwen3_5_moe_decoder,
    qwen3_5_moe_vision_encoder,
)
from torchtune_qwenvl.models.qwen3_5_moe._model_builders import (
    qwen3_5_35b_a3b,
    qwen3_5_122b_a10b,
    qwen3_5_397b_a17b,
    qwen3_5_moe_from_config,
)

__all__ = [
    "qwen3_5_35b_a3b",
    "qwen3_5_122b_a10b",
    "qwen3_5_397b_a17b",
    "qwen3_5_moe_decoder",
    "qwen3_5_moe_from_config",
    "qwen3_5_moe_vision_encoder",
]
