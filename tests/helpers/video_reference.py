"""transformers' video processors that correspond to our video transforms."""

from __future__ import annotations

import importlib
from typing import Any

from torchtune_qwenvl.models.glm4v import GLM4VVideoTransform, GLM46VVideoTransform
from torchtune_qwenvl.models.qwen2_5_vl import Qwen2_5_VLVideoTransform
from torchtune_qwenvl.models.qwen2_vl import Qwen2VLVideoTransform
from torchtune_qwenvl.models.qwen3_vl import Qwen3VLVideoTransform

# family -> (our transform, transformers' model folder, its class)
FAMILIES = {
    "qwen2_vl": (Qwen2VLVideoTransform, "qwen2_vl", "Qwen2VLVideoProcessor"),
    "qwen2_5_vl": (Qwen2_5_VLVideoTransform, "qwen2_vl", "Qwen2VLVideoProcessor"),
    "qwen3_vl": (Qwen3VLVideoTransform, "qwen3_vl", "Qwen3VLVideoProcessor"),
    "glm4v": (GLM4VVideoTransform, "glm4v", "Glm4vVideoProcessor"),
    "glm46v": (GLM46VVideoTransform, "glm46v", "Glm46VVideoProcessor"),
}
SAMPLING = {"fps", "num_frames", "min_frames", "max_frames"}
# Options that a family's reference does not have, or treats by another rule.
UNKNOWN: dict[str, set[str]] = {
    **{"qwen2_vl": set(), "qwen2_5_vl": set(), "qwen3_vl": set()},
    **{"glm4v": {"num_frames", "max_frames", "min_frames"}, "glm46v": SAMPLING},
}


def reference_module(family: str) -> Any:
    """transformers' module with the family's video processor and its `smart_resize`."""
    folder = FAMILIES[family][1]
    return importlib.import_module(f"transformers.models.{folder}.video_processing_{folder}")


def reference(family: str, **settings: Any) -> Any:
    """transformers' video processor with these settings, in our names.

    The default is two frames per second, as in qwen-vl-utils; Qwen2's class by itself would read all frames.
    """
    processor = getattr(reference_module(family), FAMILIES[family][2])
    size = {}
    for ours, theirs in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
        size[theirs] = settings.pop(ours, processor.size[theirs])
    made = processor(do_sample_frames=True, size=size, **{"fps": 2.0} | settings)
    made.fps = None if "num_frames" in settings else made.fps  # otherwise some complain that both are given
    return made
