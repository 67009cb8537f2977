"""Qwen2-VL as an entry of the family registry."""

from __future__ import annotations

from torchtune_qwenvl.models.family import Family
from torchtune_qwenvl.models.qwen2_vl._model_builders import SLOTS, qwen2_vl_from_config
from torchtune_qwenvl.models.qwen2_vl._transform import load_qwen2_vl_transform
from torchtune_qwenvl.models.qwen2_vl._weights import QWEN2_VL_WEIGHTS

QWEN2_VL = Family("qwen2_vl", SLOTS, qwen2_vl_from_config, QWEN2_VL_WEIGHTS, load_qwen2_vl_transform)
