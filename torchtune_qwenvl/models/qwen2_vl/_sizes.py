"""Published sizes of Qwen/Qwen2-VL-*-Instruct.

2B: its config.json, read in a copy with fewer layers; their number from KerasHub's presets. 7B: the printed
modules of the checkpoint in zhenhua32/Qwen2-VL, READ.md. 72B: its config.json as a row of a table, which has
the two others right, in hlky/dinoml_v2 at 6b8c0acb, agents/plans/transformers/qwen2_vl/report.md.
"""

from __future__ import annotations

from typing import Any

from torchtune_qwenvl.models.qwen2_5_vl._sizes import IMAGE_MEAN, IMAGE_STD, config_of

__all__ = ["IMAGE_MEAN", "IMAGE_STD", "published_config"]

#        width  layers  heads  kv  inner   vocab   tied
_SIZES = {
    "2b": (1536, 28, 12, 2, 8960, 151936, True),
    "7b": (3584, 28, 28, 4, 18944, 152064, False),
    "72b": (8192, 80, 64, 8, 29568, 152064, False),
}


def published_config(size: str) -> dict[str, Any]:
    """What config.json of "2b", "7b" or "72b" says about the architecture."""
    text = _SIZES[size]
    vision = {"embed_dim": 1280, "mlp_ratio": 4, "hidden_size": text[0]}
    return config_of("qwen2_vl", text, 32768, vision)
