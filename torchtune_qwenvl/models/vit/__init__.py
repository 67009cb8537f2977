"""Vision transformers without a language model: presets to train from scratch, and the classic ViT.

They share the skeleton with the families' vision encoders, but no published weights fit them: Qwen3-VL's own
encoder is `torchtune_qwenvl.models.qwen3_vl.qwen3_vl_vision_encoder`.
"""

from torchtune_qwenvl.models.vit._builders import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    MODEL_TYPES,
    classic_vit,
    vit,
    vit_base,
    vit_from_config,
    vit_large,
    vit_small,
)

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "MODEL_TYPES",
    "classic_vit",
    "vit",
    "vit_base",
    "vit_from_config",
    "vit_large",
    "vit_small",
]
