"""The Qwen3-VL mixtures of experts in the family registry; their transform is the dense models'."""

from __future__ import annotations

from torchtune_qwenvl.models.family import Family
from torchtune_qwenvl.models.qwen3_vl._family import QWEN3_VL
from torchtune_qwenvl.models.qwen3_vl_moe._model_builders import SLOTS, qwen3_vl_moe_from_config
from torchtune_qwenvl.models.qwen3_vl_moe._weights import QWEN3_VL_MOE_WEIGHTS

QWEN3_VL_MOE = Family(
    "qwen3_vl_moe", SLOTS, qwen3_vl_moe_from_config, QWEN3_VL_MOE_WEIGHTS, QWEN3_VL.transform
)
