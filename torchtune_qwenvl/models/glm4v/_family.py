"""GLM-4.1V in the family registry, under both model types that transformers has for it."""

from torchtune_qwenvl.models.family import Family
from torchtune_qwenvl.models.glm4v._model_builders import SLOTS, glm4v_from_config
from torchtune_qwenvl.models.glm4v._transform import GLM4VTransform
from torchtune_qwenvl.models.glm4v._weights import GLM4V_WEIGHTS

GLM4V = Family("glm4v", SLOTS, glm4v_from_config, GLM4V_WEIGHTS, GLM4VTransform)
GLM46V = Family("glm46v", SLOTS, glm4v_from_config, GLM4V_WEIGHTS, GLM4VTransform)
