"""Model families: the registry by config.json's model_type."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchtune_qwenvl.json_files import read_config
from torchtune_qwenvl.models.family import Family
from torchtune_qwenvl.models.glm4v._family import GLM4V, GLM46V
from torchtune_qwenvl.models.glm4v_moe._family import GLM4V_MOE
from torchtune_qwenvl.models.qwen2_5_vl._family import QWEN2_5_VL
from torchtune_qwenvl.models.qwen2_vl._family import QWEN2_VL
from torchtune_qwenvl.models.qwen3_vl._family import QWEN3_VL
from torchtune_qwenvl.models.qwen3_vl_moe._family import QWEN3_VL_MOE

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (QWEN2_VL, QWEN2_5_VL, QWEN3_VL, QWEN3_VL_MOE, GLM4V, GLM46V, GLM4V_MOE)
}


def get_family(config: Mapping[str, Any] | str | Path) -> Family:
    """The family of a parsed config.json, of its path or of its folder.

    Raises:
        ValueError: where there is no config.json, or its model_type is not known.
    """
    model_type = read_config(config).get("model_type")
    if model_type not in FAMILIES:
        raise ValueError(
            f"config.json: model_type {model_type!r} is not known, expected one of {sorted(FAMILIES)}"
        )
    return FAMILIES[model_type]


def load_transform(folder: str | Path, **overrides: Any) -> Any:
    """The transform of a checkpoint folder: tokenizer, chat template and image settings of its files.

    Args:
        folder: HF checkpoint folder of a known family, published or transformers 5 layout.
        **overrides: arguments of the family's transform that replace what the folder says.

    Raises:
        ValueError: an unknown model type, or a file that is missing or contradicts another.
    """
    return get_family(folder).transform(folder, **overrides)


__all__ = ["FAMILIES", "Family", "get_family", "load_transform"]
