"""Qwen2-VL as an entry of the family registry."""

from torchtune_qwenvl.models.family import Family
from torchtune_qwenvl.models.qwen2_vl._model_builders import SLOTS, qwen2_vl_from_config
from torchtune_qwenvl.models.qwen2_vl._transform import Qwen2VLTransform
from torchtune_qwenvl.models.qwen2_vl._weights import QWEN2_VL_WEIGHTS

QWEN2_VL = Family("qwen2_vl", SLOTS, qwen2_vl_from_config, QWEN2_VL_WEIGHTS, Qwen2VLTransform)
