"""GLM-4.5V and GLM-4.6V, or any mixture of experts of the family by its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchtune_qwenvl.arguments import takes_arguments_of
from torchtune_qwenvl.models.build import Slots, build_moe_model, published_sizes
from torchtune_qwenvl.models.glm4v._hf_config import normalise_vision
from torchtune_qwenvl.models.glm4v._model_builders import VISION
from torchtune_qwenvl.models.glm4v_moe._component_builders import glm4v_moe_decoder, glm4v_moe_vision_encoder
from torchtune_qwenvl.models.glm4v_moe._hf_config import normalise_config
from torchtune_qwenvl.models.glm4v_moe._sizes import IMAGE_MEAN, IMAGE_STD, published_config
from torchtune_qwenvl.models.rope_config import head_width, rotary_width
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel

SLOTS = Slots(
    normalise=normalise_config,
    normalise_vision=normalise_vision,
    vision_encoder=glm4v_moe_vision_encoder,
    decoder=glm4v_moe_decoder,
    vision=VISION,
    text={
        "head_dim": head_width,
        "rotary_dim": rotary_width,
        "qkv_bias": "attention_bias",
        "num_experts": "n_routed_experts",
        "experts_per_token": "num_experts_per_tok",
        "expert_width": "moe_intermediate_size",
        "shared_experts": "n_shared_experts",
        "dense_layers": "first_k_dense_replace",
        "expert_groups": "n_group",
        "open_groups": "topk_group",
        "routed_scale": "routed_scaling_factor",
    },
)


@takes_arguments_of(build_moe_model)
def glm4v_moe_from_config(config: Mapping[str, Any] | str | Path, **arguments: Any) -> VisionLanguageModel:
    """A GLM mixture of experts of the size that a config.json describes, with random weights.

    Raises:
        ValueError: as `build_moe_model`. Also for DoRA on MLPs, which PEFT cannot load for this family: it
            takes their names for those of experts in older files.
    """
    if arguments.get("use_dora") and arguments.get("apply_lora_to_mlp"):
        raise ValueError(
            "use_dora with apply_lora_to_mlp: PEFT loads no DoRA on the MLPs of this family. Set "
            "use_dora=False, or apply_lora_to_mlp=False"
        )
    return build_moe_model(SLOTS, config, **arguments)


_size = published_sizes(glm4v_moe_from_config, published_config, IMAGE_MEAN, IMAGE_STD)
glm4_5v = _size("glm4_5v", "4.5v", "GLM-4.5V, 107,710,933,120 parameters.")
glm4_6v = _size("glm4_6v", "4.6v", "GLM-4.6V, 107,710,933,120 parameters: GLM-4.5V with a longer context.")
