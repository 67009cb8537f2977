"""GLM-4.1V and GLM-4.6V-Flash, or any dense model of the family by its config.json.

All builders take the same arguments beside the size: `image_mean`, `image_std`, `loss_chunk_tokens`, and what
`torchtune_qwenvl.modules.lora.plan_training` takes (`encoder_trainable`, `fusion_trainable`,
`decoder_trainable`, `lora_attn_modules`, `apply_lora_to_mlp`, `lora_rank`, `lora_alpha`, `lora_dropout`,
`use_dora`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchtune_qwenvl.models._builders import assemble
from torchtune_qwenvl.models._hf_config import read_config, rotary_width, yarn_arguments
from torchtune_qwenvl.models.glm4v._component_builders import glm4v_decoder, glm4v_vision_encoder
from torchtune_qwenvl.models.glm4v._hf_config import normalise_config
from torchtune_qwenvl.models.glm4v._sizes import IMAGE_MEAN, IMAGE_STD, published_config
from torchtune_qwenvl.modules.lora import plan_training
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel


def glm4v_from_config(
    config: Mapping[str, Any] | str | Path,
    *,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    loss_chunk_tokens: int = 2048,
    **trainable: Any,
) -> VisionLanguageModel:
    """GLM-4.1V of the size that a config.json describes, with random weights.

    Args:
        config: the parsed config.json in its published or its 5.x form, its path, or that of its folder.
        image_mean: per channel, in 0 .. 1, of the folder's preprocessor file; needed for uint8 pixels.
        image_std: the same.
        loss_chunk_tokens: most positions whose logits exist at once in training.
        **trainable: arguments of `plan_training`.

    Raises:
        ValueError: for a config that is missing, incomplete or unsupported, and for contradicting arguments.
    """
    config = normalise_config(read_config(config))
    text, vision = config["text_config"], config["vision_config"]
    training = plan_training(**trainable)
    encoder = glm4v_vision_encoder(
        depth=vision["depth"],
        width=vision["hidden_size"],
        num_heads=vision["num_heads"],
        inner_width=vision["intermediate_size"],
        out_width=vision["out_hidden_size"],
        patch_size=vision["patch_size"],
        temporal_patch_size=vision["temporal_patch_size"],
        in_channels=vision["in_channels"],
        merge_size=vision["spatial_merge_size"],
        table_side=vision["image_size"] // vision["patch_size"],
        norm_eps=vision["rms_norm_eps"],
        qkv_bias=vision["attention_bias"],
        image_mean=image_mean,
        image_std=image_std,
        adapter=training.adapters["encoder"],
        merger_adapter=training.adapters["fusion"],
    )
    decoder = glm4v_decoder(
        vocab_size=text["vocab_size"],
        depth=text["num_hidden_layers"],
        width=text["hidden_size"],
        num_heads=text["num_attention_heads"],
        num_kv_heads=text["num_key_value_heads"],
        inner_width=text["intermediate_size"],
        tied=config["tie_word_embeddings"],
        norm_eps=text["rms_norm_eps"],
        rotary_dim=rotary_width(text),
        mrope_section=text["rope_parameters"]["mrope_section"],
        rope_theta=text["rope_parameters"]["rope_theta"],
        yarn=yarn_arguments(text),
        adapter=training.adapters["decoder"],
    )
    return assemble(config, encoder, decoder, training, loss_chunk_tokens)


def glm4_1v_9b(**arguments: Any) -> VisionLanguageModel:
    """GLM-4.1V-9B, Base and Thinking."""
    return _published("4.1v_9b", arguments)


def glm4_6v_flash(**arguments: Any) -> VisionLanguageModel:
    """GLM-4.6V-Flash: GLM-4.1V-9B with a longer context and other tokens."""
    return _published("4.6v_flash", arguments)


def _published(size: str, arguments: dict[str, Any]) -> VisionLanguageModel:
    scale = {"image_mean": IMAGE_MEAN, "image_std": IMAGE_STD}
    return glm4v_from_config(published_config(size), **{**scale, **arguments})
