"""The Qwen3.5 mixtures of experts in the family registry; their transform is the dense models'."""

from __future__ import annotations

from torchtune_qwenvl.models.family import Family
from torchtune_qwenvl.models.qwen3_5._family import QWEN3_5
from torchtune_qwenvl.models.qwen3_5_moe._model_builders import SLOTS, qwen3_5_moe_from_config
from torchtune_qwenvl.models.qwen3_5_moe._weights import QWEN3_5_MOE_WEIGHTS

QWEN3_5_MOE = Family("qwen3_5_moe", SLOTS, qwen3_5_moe_from_config, QWEN3_5_MOE_WEIGHTS, QWEN3_5.transform)
