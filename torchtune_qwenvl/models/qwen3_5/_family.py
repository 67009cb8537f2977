"""Qwen3.5 as an entry of the family registry."""

from torchtune_qwenvl.models.family import Family
from torchtune_qwenvl.models.qwen3_5._model_builders import SLOTS, qwen3_5_from_config
from torchtune_qwenvl.models.qwen3_5._transform import Qwen3_5Transform
from torchtune_qwenvl.models.qwen3_5._weights import QWEN3_5_WEIGHTS

QWEN3_5 = Family("qwen3_5", SLOTS, qwen3_5_from_config, QWEN3_5_WEIGHTS, Qwen3_5Transform)
