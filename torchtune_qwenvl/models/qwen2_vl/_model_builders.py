"""Qwen2-VL of every published size, or of any size by its config.json.

All builders take the same arguments beside the size: `image_mean`, `image_std`, `loss_chunk_tokens`, and what
`torchtune_qwenvl.modules.lora.plan_training` takes (`encoder_trainable`, `lora_rank`, …).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torchtune_qwenvl.models._builders import assemble
from torchtune_qwenvl.models._hf_config import read_config, yarn_arguments
from torchtune_qwenvl.models.qwen2_vl._component_builders import qwen2_vl_decoder, qwen2_vl_vision_encoder
from torchtune_qwenvl.models.qwen2_vl._hf_config import normalise_config
from torchtune_qwenvl.models.qwen2_vl._sizes import IMAGE_MEAN, IMAGE_STD, published_config
from torchtune_qwenvl.modules.lora import plan_training
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel


def qwen2_vl_from_config(
    config: Mapping[str, Any] | str | Path,
    *,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    loss_chunk_tokens: int = 2048,
    **trainable: Any,
) -> VisionLanguageModel:
    """Qwen2-VL of the size that a config.json describes, with random weights.

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
    encoder = qwen2_vl_vision_encoder(
        depth=vision["depth"],
        width=vision["embed_dim"],
        num_heads=vision["num_heads"],
        inner_width=int(vision["embed_dim"] * vision["mlp_ratio"]),
        out_width=vision["hidden_size"],
        patch_size=vision["patch_size"],
        temporal_patch_size=vision["temporal_patch_size"],
        in_channels=vision["in_channels"],
        merge_size=vision["spatial_merge_size"],
        image_mean=image_mean,
        image_std=image_std,
        adapter=training.adapters["encoder"],
        merger_adapter=training.adapters["fusion"],
    )
    decoder = qwen2_vl_decoder(
        vocab_size=text["vocab_size"],
        depth=text["num_hidden_layers"],
        width=text["hidden_size"],
        num_heads=text["num_attention_heads"],
        num_kv_heads=text["num_key_value_heads"],
        inner_width=text["intermediate_size"],
        tied=config["tie_word_embeddings"],
        norm_eps=text["rms_norm_eps"],
        mrope_section=text["rope_parameters"]["mrope_section"],
        rope_theta=text["rope_parameters"]["rope_theta"],
        yarn=yarn_arguments(text),
        adapter=training.adapters["decoder"],
    )
    return assemble(config, encoder, decoder, training, loss_chunk_tokens)


def qwen2_vl_2b(**arguments: Any) -> VisionLanguageModel:
    """Qwen2-VL-2B, 2,208,985,600 parameters, tied head."""
    return _published("2b", arguments)


def qwen2_vl_7b(**arguments: Any) -> VisionLanguageModel:
    """Qwen2-VL-7B, 8,291,375,616 parameters."""
    return _published("7b", arguments)


def qwen2_vl_72b(**arguments: Any) -> VisionLanguageModel:
    """Qwen2-VL-72B, 73,405,560,320 parameters."""
    return _published("72b", arguments)


def _published(size: str, arguments: dict[str, Any]) -> VisionLanguageModel:
    scale = {"image_mean": IMAGE_MEAN, "image_std": IMAGE_STD}
    return qwen2_vl_from_config(published_config(size), **{**scale, **arguments})
