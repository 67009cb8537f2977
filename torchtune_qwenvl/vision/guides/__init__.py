"""Names that two guides gave to parts of this package, with their arguments.

qwen3_vl_vit.py, qwen3_vl_pipeline.py    a plain ViT, from image to tokens
glm4v_encoder.py, glm4v_processor.py     GLM-4V's encoder alone
"""

from torchtune_qwenvl.vision.guides.glm4v_encoder import VisionConfig, VisionModel
from torchtune_qwenvl.vision.guides.glm4v_processor import (
    VisionProcessor,
    create_glm4v_vision_encoder,
    encode_image,
    encode_images,
)
from torchtune_qwenvl.vision.guides.qwen3_vl_pipeline import (
    ImagePreprocessor,
    Qwen3VLPipeline,
    TokenPostprocessor,
)
from torchtune_qwenvl.vision.guides.qwen3_vl_vit import Qwen3VisionTransformer, create_qwen3_vl_vit

__all__ = [
    "ImagePreprocessor",
    "Qwen3VLPipeline",
    "Qwen3VisionTransformer",
    "TokenPostprocessor",
    "VisionConfig",
    "VisionModel",
    "VisionProcessor",
    "create_glm4v_vision_encoder",
    "create_qwen3_vl_vit",
    "encode_image",
    "encode_images",
]
