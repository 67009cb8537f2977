"""GLM-4.5V and GLM-4.6V, mixtures of experts: builders and transform."""

from torchtune_qwenvl.models.glm4v_moe._component_builders import glm4v_moe_decoder, glm4v_moe_vision_encoder
from torchtune_qwenvl.models.glm4v_moe._model_builders import glm4_5v, glm4_6v, glm4v_moe_from_config
from torchtune_qwenvl.models.glm4v_moe._transform import (
    GLM4VMoeTransform,
    glm4v_moe_transform,
    load_glm4v_moe_transform,
)

__all__ = [
    "GLM4VMoeTransform",
    "glm4_5v",
    "glm4_6v",
    "glm4v_moe_decoder",
    "glm4v_moe_from_config",
    "glm4v_moe_transform",
    "glm4v_moe_vision_encoder",
    "load_glm4v_moe_transform",
]
