"""Qwen3-VL mixtures of experts of every published size, or of any by config.json.

Beside what the dense builders take: `experts_trainable` and `router_aux_loss_coef`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torchtune_qwenvl.models._builders import assemble
from torchtune_qwenvl.models._hf_config import read_config
from torchtune_qwenvl.models.qwen3_vl._model_builders import encoder_of, text_arguments
from torchtune_qwenvl.models.qwen3_vl_moe._component_builders import qwen3_vl_moe_decoder
from torchtune_qwenvl.models.qwen3_vl_moe._hf_config import normalise_config
from torchtune_qwenvl.models.qwen3_vl_moe._sizes import IMAGE_MEAN, IMAGE_STD, published_config
from torchtune_qwenvl.modules.lora import MLP_LINEARS, Training, plan_training
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel


def qwen3_vl_moe_from_config(
    config: Mapping[str, Any] | str | Path,
    *,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    loss_chunk_tokens: int = 2048,
    experts_trainable: bool | None = None,
    router_aux_loss_coef: float = 0.0,
    **trainable: Any,
) -> VisionLanguageModel:
    """A Qwen3-VL mixture of experts of the size that a config.json describes, with random weights.

    Args:
        config: the parsed config.json in its published or its 5.x form, its path, or that of its folder.
        image_mean: per channel, in 0 .. 1, of the folder's preprocessor file; needed for uint8 pixels.
        image_std: the same.
        loss_chunk_tokens: most positions whose logits exist at once in training.
        experts_trainable: whether the experts' weights train; None: as the decoder, frozen in a "lora" one.
        router_aux_loss_coef: weight of the load-balance loss beside the mean loss of a token; published
            trainings take 0.001.
        **trainable: arguments of `plan_training`.

    Raises:
        ValueError: for a config that is missing, incomplete or unsupported, and for contradicting arguments.
    """
    config = normalise_config(read_config(config))
    training = _training(experts_trainable, trainable)
    encoder = encoder_of(config["vision_config"], training, image_mean, image_std)
    text = config["text_config"]
    decoder = qwen3_vl_moe_decoder(
        num_experts=text["num_experts"],
        experts_per_token=text["num_experts_per_tok"],
        expert_width=text["moe_intermediate_size"],
        dense_layers=text["dense_layers"],
        dense_width=text["intermediate_size"],
        tied=config["tie_word_embeddings"],
        adapter=training.adapters["decoder"],
        **text_arguments(text),
    )
    return assemble(config, encoder, decoder, training, loss_chunk_tokens, router_aux_loss_coef)


def qwen3_vl_30b_a3b(**arguments: Any) -> VisionLanguageModel:
    """Qwen3-VL-30B-A3B, 31,070,754,032 parameters."""
    return _published("30b_a3b", arguments)


def qwen3_vl_235b_a22b(**arguments: Any) -> VisionLanguageModel:
    """Qwen3-VL-235B-A22B, 235,670,022,896 parameters."""
    return _published("235b_a22b", arguments)


def _training(experts_trainable: bool | None, trainable: dict[str, Any]) -> Training:
    training = plan_training(**trainable)
    adapter = training.adapters["decoder"]
    if adapter is not None and adapter.targets & set(MLP_LINEARS) and experts_trainable is None:
        raise ValueError(
            "apply_lora_to_mlp with a mixture of experts: experts take no LoRA, neither torchtune nor PEFT's "
            "modules know one on [experts, …] tensors. Set apply_lora_to_mlp=False, or say with "
            "experts_trainable=False or True whether the experts stay as they are or train in full"
        )
    if experts_trainable is None:
        return training
    return replace(training, exceptions={"experts": "full" if experts_trainable else "frozen"})


def _published(size: str, arguments: dict[str, Any]) -> VisionLanguageModel:
    scale = {"image_mean": IMAGE_MEAN, "image_std": IMAGE_STD}
    return qwen3_vl_moe_from_config(published_config(size), **{**scale, **arguments})
