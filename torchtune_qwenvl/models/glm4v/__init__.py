"""GLM-4.1V and GLM-4.6V-Flash: builders and transform."""

from torchtune_qwenvl.models.glm4v._component_builders import glm4v_decoder, glm4v_vision_encoder
from torchtune_qwenvl.models.glm4v._model_builders import glm4_1v_9b, glm4_6v_flash, glm4v_from_config
from torchtune_qwenvl.models.glm4v._transform import GLM4VImageTransform, GLM4VTransform, glm4v_transform
from torchtune_qwenvl.models.glm4v._video import GLM4VVideoTransform, GLM46VVideoTransform

__all__ = [
    "GLM4VImageTransform",
    "GLM4VTransform",
    "GLM4VVideoTransform",
    "GLM46VVideoTransform",
    "glm4_1v_9b",
    "glm4_6v_flash",
    "glm4v_decoder",
    "glm4v_from_config",
    "glm4v_transform",
    "glm4v_vision_encoder",
]
