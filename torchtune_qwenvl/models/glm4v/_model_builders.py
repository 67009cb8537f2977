"""GLM-4.1V and GLM-4.6V-Flash, or any dense model of the family by its config.json."""

from __future__ import annotations

from torchtune_qwenvl.models.build import Entries, Slots, config_builder, published_sizes
from torchtune_qwenvl.models.glm4v._component_builders import glm4v_decoder, glm4v_vision_encoder
from torchtune_qwenvl.models.glm4v._hf_config import normalise_config, normalise_vision
from torchtune_qwenvl.models.glm4v._sizes import IMAGE_MEAN, IMAGE_STD, published_config
from torchtune_qwenvl.models.rope_config import rotary_width

VISION: Entries = {
    "table_side": lambda vision: vision["image_size"] // vision["patch_size"],
    "norm_eps": "rms_norm_eps",
    "qkv_bias": "attention_bias",
}
SLOTS = Slots(
    normalise=normalise_config,
    normalise_vision=normalise_vision,
    vision_encoder=glm4v_vision_encoder,
    decoder=glm4v_decoder,
    vision=VISION,
    text={"rotary_dim": rotary_width},
)

glm4v_from_config = config_builder(
    SLOTS,
    "glm4v_from_config",
    "GLM-4.1V of the size that a config.json describes, with random weights.",
    module=__name__,
)
_size = published_sizes(glm4v_from_config, published_config, IMAGE_MEAN, IMAGE_STD)
glm4_1v_9b = _size("glm4_1v_9b", "4.1v_9b", "GLM-4.1V-9B, Base and Thinking, 10,292,777,472 parameters.")
glm4_6v_flash = _size(
    "glm4_6v_flash",
    "4.6v_flash",
    "GLM-4.6V-Flash, 10,292,777,472 parameters: GLM-4.1V-9B with a longer context and other tokens.",
)
