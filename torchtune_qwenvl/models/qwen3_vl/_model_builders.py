"""Qwen3-VL of every published dense size, or of any by its config.json.

All builders take the same arguments beside the size: `image_mean`, `image_std`, `loss_chunk_tokens`, and what
`torchtune_qwenvl.modules.lora.plan_training` takes (`encoder_trainable`, `lora_rank`, …).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchtune_qwenvl.models._builders import assemble
from torchtune_qwenvl.models._hf_config import read_config, yarn_arguments
from torchtune_qwenvl.models.qwen3_vl._component_builders import qwen3_vl_decoder, qwen3_vl_vision_encoder
from torchtune_qwenvl.models.qwen3_vl._hf_config import normalise_config
from torchtune_qwenvl.models.qwen3_vl._sizes import IMAGE_MEAN, IMAGE_STD, published_config
from torchtune_qwenvl.modules.lora import Training, plan_training
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel
from torchtune_qwenvl.modules.vision_transformer import VisionTransformer


def qwen3_vl_from_config(
    config: Mapping[str, Any] | str | Path,
    *,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    loss_chunk_tokens: int = 2048,
    **trainable: Any,
) -> VisionLanguageModel:
    """Qwen3-VL of the size that a config.json describes, with random weights.

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
    training = plan_training(**trainable)
    encoder = encoder_of(config["vision_config"], training, image_mean, image_std)
    text = config["text_config"]
    decoder = qwen3_vl_decoder(
        inner_width=text["intermediate_size"],
        tied=config["tie_word_embeddings"],
        adapter=training.adapters["decoder"],
        **text_arguments(text),
    )
    return assemble(config, encoder, decoder, training, loss_chunk_tokens)


def encoder_of(
    vision: Mapping[str, Any],
    training: Training,
    image_mean: Sequence[float] | None,
    image_std: Sequence[float] | None,
) -> VisionTransformer:
    """The encoder of a normalised vision config, the same in dense and MoE models."""
    return qwen3_vl_vision_encoder(
        depth=vision["depth"],
        width=vision["hidden_size"],
        num_heads=vision["num_heads"],
        inner_width=vision["intermediate_size"],
        out_width=vision["out_hidden_size"],
        deepstack_layers=vision["deepstack_visual_indexes"],
        position_side=math.isqrt(vision["num_position_embeddings"]),
        patch_size=vision["patch_size"],
        temporal_patch_size=vision["temporal_patch_size"],
        in_channels=vision["in_channels"],
        merge_size=vision["spatial_merge_size"],
        image_mean=image_mean,
        image_std=image_std,
        adapter=training.adapters["encoder"],
        merger_adapter=training.adapters["fusion"],
    )


def text_arguments(text: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a decoder's builder in a normalised text config."""
    return {
        "vocab_size": text["vocab_size"],
        "depth": text["num_hidden_layers"],
        "width": text["hidden_size"],
        "num_heads": text["num_attention_heads"],
        "num_kv_heads": text["num_key_value_heads"],
        "head_dim": text["head_dim"],
        "norm_eps": text["rms_norm_eps"],
        "mrope_section": text["rope_parameters"]["mrope_section"],
        "rope_theta": text["rope_parameters"]["rope_theta"],
        "yarn": yarn_arguments(text),
    }


def qwen3_vl_2b(**arguments: Any) -> VisionLanguageModel:
    """Qwen3-VL-2B, 2,127,532,032 parameters, tied head."""
    return _published("2b", arguments)


def qwen3_vl_4b(**arguments: Any) -> VisionLanguageModel:
    """Qwen3-VL-4B, 4,437,815,808 parameters, tied head."""
    return _published("4b", arguments)


def qwen3_vl_8b(**arguments: Any) -> VisionLanguageModel:
    """Qwen3-VL-8B, 8,767,123,696 parameters."""
    return _published("8b", arguments)


def qwen3_vl_32b(**arguments: Any) -> VisionLanguageModel:
    """Qwen3-VL-32B, 33,357,390,064 parameters."""
    return _published("32b", arguments)


def _published(size: str, arguments: dict[str, Any]) -> VisionLanguageModel:
    scale = {"image_mean": IMAGE_MEAN, "image_std": IMAGE_STD}
    return qwen3_vl_from_config(published_config(size), **{**scale, **arguments})
