"""GLM's mixtures of experts, GLM-4.5V and GLM-4.6V, in the family registry."""

from torchtune_qwenvl.models.family import Family
from torchtune_qwenvl.models.glm4v_moe._model_builders import SLOTS, glm4v_moe_from_config
from torchtune_qwenvl.models.glm4v_moe._transform import GLM4VMoeTransform
from torchtune_qwenvl.models.glm4v_moe._weights import GLM4V_MOE_WEIGHTS

GLM4V_MOE = Family("glm4v_moe", SLOTS, glm4v_moe_from_config, GLM4V_MOE_WEIGHTS, GLM4VMoeTransform)
