"""GLM-4.1V as an entry of the family registry."""

from __future__ import annotations

from typing import Any

from torchtune_qwenvl.models._family import Family
from torchtune_qwenvl.models.glm4v._model_builders import glm4v_from_config
from torchtune_qwenvl.models.glm4v._weights import GLM4V_WEIGHTS


def _load_transform(folder: Any, **overrides: Any) -> Any:
    from torchtune_qwenvl.models.glm4v._transform import load_glm4v_transform

    return load_glm4v_transform(folder, **overrides)


GLM4V = Family("glm4v", glm4v_from_config, GLM4V_WEIGHTS, _load_transform)
GLM46V = Family("glm46v", glm4v_from_config, GLM4V_WEIGHTS, _load_transform)
