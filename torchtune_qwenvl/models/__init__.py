"""Model families, found by the model_type of config.json, and what a family is made of.

    get_family(folder)         a checkpoint folder's family
    register_family(family)    add a family from outside the package

A `Family` has five entries. `examples/toy_family/` in the repository is a whole one in two files.

    model_type     as config.json has it
    slots          `Slots`: config.json -> encoder and decoder. `ConfigRules` states what config.json must
                   say; the builders take `VisionShape` and `TextShape` and use `towers` and `parts`
    from_config    the builder by config.json, made by `build.config_builder`
    weights        `WeightTable`: the files' names next to ours; `weight_rows` has rows that families share
    transform      (folder, **overrides) -> transform: `PublishedTransform.load` of a subclass that fills
                   `Published`
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from torchtune_qwenvl.arguments import passes_on, takes_arguments_of
from torchtune_qwenvl.json_files import read_config
from torchtune_qwenvl.models.build import Slots, build_moe_model
from torchtune_qwenvl.models.family import Family
from torchtune_qwenvl.models.glm4v._family import GLM4V, GLM46V
from torchtune_qwenvl.models.glm4v_moe._family import GLM4V_MOE
from torchtune_qwenvl.models.hf_config import ConfigRules
from torchtune_qwenvl.models.published import Published, image_defaults
from torchtune_qwenvl.models.published_transform import PublishedTransform
from torchtune_qwenvl.models.qwen2_5_vl._family import QWEN2_5_VL
from torchtune_qwenvl.models.qwen2_vl._family import QWEN2_VL
from torchtune_qwenvl.models.qwen3_5._family import QWEN3_5
from torchtune_qwenvl.models.qwen3_5_moe._family import QWEN3_5_MOE
from torchtune_qwenvl.models.qwen3_vl._family import QWEN3_VL
from torchtune_qwenvl.models.qwen3_vl_moe._family import QWEN3_VL_MOE
from torchtune_qwenvl.models.towers import TextShape, VisionShape
from torchtune_qwenvl.models.weight_table import Slice, WeightTable
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel
from torchtune_qwenvl.transforms.images.image_transform import ImageTransform
from torchtune_qwenvl.transforms.processor_folder import read_processor_folder
from torchtune_qwenvl.transforms.processor_settings import image_statistics
from torchtune_qwenvl.transforms.videos.video_transform import VideoTransform

# model_type of a folder of a vision encoder alone: its family's, with this at the end.
ENCODER_SUFFIX = "_vision"
# The families of the package; those that `register_family` adds are kept apart.
FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        *(QWEN2_VL, QWEN2_5_VL, QWEN3_VL, QWEN3_VL_MOE, QWEN3_5, QWEN3_5_MOE),
        *(GLM4V, GLM46V, GLM4V_MOE),
    )
}
_REGISTERED: dict[str, Family] = {}


def register_family(family: Family) -> None:
    """Make a family from outside the package known to `get_family`, and so to every loader and recipe.

    Args:
        family: the same object may be registered again.

    Raises:
        ValueError: another family has its model_type.
    """
    known = FAMILIES | _REGISTERED
    if known.setdefault(family.model_type, family) is not family:
        raise ValueError(
            f"a family with the model_type {family.model_type!r} is registered already: choose another "
            "model_type, in config.json too"
        )
    _REGISTERED[family.model_type] = family


def get_family(config: Mapping[str, Any] | str | Path) -> Family:
    """The family of a parsed config.json, of its path or of its folder.

    Raises:
        ValueError: there is no config.json, it is broken, or its model_type is not known.
    """
    model_type = read_config(config).get("model_type")
    known = FAMILIES | _REGISTERED
    if not isinstance(model_type, str) or model_type not in known:
        where = f"{config}: " if isinstance(config, str | Path) else ""
        raise ValueError(
            f"{where}config.json: model_type {model_type!r} is not known, expected one of {sorted(known)}. "
            "A family of your own must be imported first, see torchtune_qwenvl.models.register_family"
        )
    return known[model_type]


@passes_on(lambda: [family.transform.load for family in (FAMILIES | _REGISTERED).values()])
def load_transform(folder: str | Path, **overrides: Any) -> Any:
    """The transform of a checkpoint folder: tokenizer, chat template and image settings from its files.

    Args:
        folder: HF checkpoint folder of a known family, published or transformers 5 layout.
        **overrides: arguments of the family's transform that replace the folder's values.

    Raises:
        ValueError: the model type is not known, or a file is missing, broken or contradicts another.
    """
    return get_family(folder).transform.load(folder, **overrides)


@takes_arguments_of(build_moe_model)
def any_model(folder: str | Path, **arguments: Any) -> VisionLanguageModel:
    """A model of the family and size of a checkpoint folder, with random weights, for YAML (`model: any`).

    Args:
        folder: has config.json, and the settings of images, from which `image_mean` and `image_std` come.

    Raises:
        ValueError: the folder's family is not known or has no such argument, or as its builder.
    """
    family = get_family(folder)
    takes = inspect.signature(family.from_config).parameters
    if unknown := [name for name in arguments if name not in takes]:
        raise ValueError(
            f"{folder}: a model of type {family.model_type!r} has no argument {unknown[0]!r}, which is for "
            "mixtures of experts"
        )
    return family.from_config(folder, **{**image_statistics(folder), **arguments})


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


__all__ = [
    "ENCODER_SUFFIX",
    "FAMILIES",
    "ConfigRules",
    "Family",
    "Published",
    "PublishedTransform",
    "Slice",
    "Slots",
    "TextShape",
    "VisionShape",
    "WeightTable",
    "any_model",
    "get_family",
    "image_defaults",
    "load_media_transforms",
    "load_transform",
    "register_family",
]
