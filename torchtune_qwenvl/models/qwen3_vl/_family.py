"""Qwen3-VL as an entry of the family registry."""

from torchtune_qwenvl.models.family import Family
from torchtune_qwenvl.models.qwen3_vl._model_builders import SLOTS, qwen3_vl_from_config
from torchtune_qwenvl.models.qwen3_vl._transform import Qwen3VLTransform
from torchtune_qwenvl.models.qwen3_vl._weights import QWEN3_VL_WEIGHTS

QWEN3_VL = Family("qwen3_vl", SLOTS, qwen3_vl_from_config, QWEN3_VL_WEIGHTS, Qwen3VLTransform)
