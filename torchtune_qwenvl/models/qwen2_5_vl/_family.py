"""Qwen2.5-VL as an entry of the family registry."""

from torchtune_qwenvl.models.family import Family
from torchtune_qwenvl.models.qwen2_5_vl._model_builders import SLOTS, qwen2_5_vl_from_config
from torchtune_qwenvl.models.qwen2_5_vl._transform import Qwen2_5_VLTransform
from torchtune_qwenvl.models.qwen2_5_vl._weights import QWEN2_5_VL_WEIGHTS

QWEN2_5_VL = Family("qwen2_5_vl", SLOTS, qwen2_5_vl_from_config, QWEN2_5_VL_WEIGHTS, Qwen2_5_VLTransform)
