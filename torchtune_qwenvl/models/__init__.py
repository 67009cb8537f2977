"""Model families: the registry by config.json's model_type."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from torchtune_qwenvl.json_files import read_config
from torchtune_qwenvl.models.family import Family
from torchtune_qwenvl.models.glm4v._family import GLM4V, GLM46V
from torchtune_qwenvl.models.glm4v_moe._family import GLM4V_MOE
from torchtune_qwenvl.models.qwen2_5_vl._family import QWEN2_5_VL
from torchtune_qwenvl.models.qwen2_vl._family import QWEN2_VL
from torchtune_qwenvl.models.qwen3_vl._family import QWEN3_VL
from torchtune_qwenvl.models.qwen3_vl_moe._family import QWEN3_VL_MOE
from torchtune_qwenvl.transforms.images.image_transform import ImageTransform
from torchtune_qwenvl.transforms.processor_folder import read_processor_folder
from torchtune_qwenvl.transforms.videos.video_transform import VideoTransform

# model_type of a folder of a vision encoder alone: its family's, with this at the end.
ENCODER_SUFFIX = "_vision"
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
    return get_family(folder).transform.load(folder, **overrides)


def load_media_transforms(
    folder: str | Path, dtype: torch.dtype = torch.float32, **limits: int
) -> tuple[ImageTransform, VideoTransform | None]:
    """The transforms of images and of videos of a folder, without tokenizer and text; None: it takes no
    videos.

    Args:
        folder: a whole checkpoint, or one of a vision encoder alone.
        dtype: of the patches.
        **limits: `min_pixels` and `max_pixels` of images instead of the folder's.

    Raises:
        ValueError: see `load_transform`.
    """
    files = read_processor_folder(folder)
    model_type = str(files.config.get("model_type")).removesuffix(ENCODER_SUFFIX)
    return get_family({"model_type": model_type}).transform.published.media(files, dtype, **limits)


__all__ = ["ENCODER_SUFFIX", "FAMILIES", "Family", "get_family", "load_media_transforms", "load_transform"]
