"""From config.json to a model, for every family: `Slots` is the family's share, the rest is the same.

config.json ─> Slots.normalise ─> Slots.vision ─> Slots.vision_encoder ─┐
                                  Slots.text ───> Slots.decoder ────────┴─> VisionLanguageModel
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchtune_qwenvl.arguments import takes_arguments_of
from torchtune_qwenvl.json_files import read_config
from torchtune_qwenvl.models.rope_config import rope_scaling
from torchtune_qwenvl.modules.decoder import VisionLanguageDecoder
from torchtune_qwenvl.modules.trainable import (
    Mode,
    Training,
    plan_embeddings,
    plan_experts,
    plan_training,
)
from torchtune_qwenvl.modules.vision.transformer import VisionTransformer
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel

Config = Mapping[str, Any]
# Entry of a model's config: vocab_size of the folder that it was built for, if its embeddings were resized.
RESIZED_FROM = "resized_from_vocab_size"
# A builder's argument -> an entry of the normalised config, or a function that computes it from all entries.
Entries = Mapping[str, str | Callable[[Config], Any]]

_VISION: Entries = {
    "depth": "depth",
    "width": "hidden_size",
    "num_heads": "num_heads",
    "inner_width": "intermediate_size",
    "out_width": "out_hidden_size",
    "patch_size": "patch_size",
    "temporal_patch_size": "temporal_patch_size",
    "in_channels": "in_channels",
    "merge_size": "spatial_merge_size",
}
_TEXT: Entries = {
    "vocab_size": "vocab_size",
    "depth": "num_hidden_layers",
    "width": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "inner_width": "intermediate_size",
    "norm_eps": "rms_norm_eps",
    "mrope_section": lambda text: text["rope_parameters"]["mrope_section"],
    "rope_theta": lambda text: text["rope_parameters"]["rope_theta"],
    "rope_scaling": rope_scaling,
}


@dataclass(frozen=True, kw_only=True)
class Slots:
    """A family's share of building a model.

    Attributes:
        normalise: a parsed config.json in either form -> the nested form, checked.
        normalise_vision: its vision part, or a config.json of the encoder alone -> the entries needed,
            checked.
        vision_encoder: builder of the encoder; takes the arguments of `VisionShape`.
        decoder: builder of the language model; takes the arguments of `TextShape`.
        vision: where further arguments of `vision_encoder` come from. They add to or replace the ones that
            every family has.
        text: the same for `decoder`.
    """

    normalise: Callable[[Config], dict[str, Any]]
    normalise_vision: Callable[[Config], dict[str, Any]]
    vision_encoder: Callable[..., VisionTransformer]
    decoder: Callable[..., VisionLanguageDecoder]
    vision: Entries = field(default_factory=dict)
    text: Entries = field(default_factory=dict)


@takes_arguments_of(plan_training)
def build_model(
    slots: Slots,
    config: Config | str | Path,
    *,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    tie_word_embeddings: bool | None = None,
    loss_chunk_tokens: int = 2048,
    resize_embeddings: int | None = None,
    embeddings_trainable: bool | None = None,
    **trainable: Any,
) -> VisionLanguageModel:
    """A model of the size that a config.json describes, with random weights.

    Args:
        slots: the family's.
        config: the parsed config.json in its published or its transformers 5 form, its path, or its folder.
        image_mean: mean per channel, in 0 .. 1, from the folder's image settings; needed for uint8 pixels.
        image_std: standard deviation per channel; needed for uint8 pixels.
        tie_word_embeddings: whether the head shares the embeddings' weight; None: as the config says. The
            recipe gives False for a folder that holds a head of its own all the same.
        loss_chunk_tokens: in training, compute logits for at most so many positions at once.
        resize_embeddings: number of rows of token embeddings and head, if the tokenizer has more tokens than
            config.json's vocab_size; when weights are loaded, new rows become the mean of the old ones.
        embeddings_trainable: train token embeddings and head fully, or freeze them. None: as the decoder.
            Next to LoRA they are frozen, or train fully if they are resized.
        **trainable: arguments of `plan_training`.

    Raises:
        ValueError: the config is missing, broken, incomplete or unsupported, or arguments contradict each
            other.
    """
    config = _read(slots, config, resize_embeddings, tie_word_embeddings)
    training = plan_embeddings(plan_training(**trainable), embeddings_trainable, RESIZED_FROM in config)
    return _assemble(slots, config, training, (image_mean, image_std), loss_chunk_tokens=loss_chunk_tokens)


@takes_arguments_of(plan_training)
def build_vision_encoder(
    slots: Slots,
    config: Config,
    *,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    **trainable: Any,
) -> VisionTransformer:
    """The vision encoder alone, with random weights.

    Args:
        slots: the family's.
        config: a parsed config.json, or that of an encoder alone.
        image_mean: see `build_model`.
        image_std: see `build_model`.
        **trainable: arguments of `plan_training`; those of the decoder change nothing.

    Raises:
        ValueError: see `build_model`.
    """
    training = plan_training(**trainable)
    vision = slots.normalise_vision(config.get("vision_config", config))
    encoder = slots.vision_encoder(
        **_arguments({**_VISION, **slots.vision}, vision),
        image_mean=image_mean,
        image_std=image_std,
        adapter=training.adapters["encoder"],
        merger_adapter=training.adapters["fusion"],
    )
    training.apply(encoder, within="vision_encoder.")
    return encoder


@takes_arguments_of(build_model)
def build_moe_model(
    slots: Slots,
    config: Config | str | Path,
    *,
    image_mean: Sequence[float] | None = None,
    image_std: Sequence[float] | None = None,
    tie_word_embeddings: bool | None = None,
    experts_trainable: Mode | bool | None = None,
    router_aux_loss_coef: float = 0.0,
    loss_chunk_tokens: int = 2048,
    resize_embeddings: int | None = None,
    embeddings_trainable: bool | None = None,
    **trainable: Any,
) -> VisionLanguageModel:
    """`build_model` for a mixture of experts.

    Args:
        experts_trainable: how the experts' weights train: "frozen", "lora" (that of the decoder's MLPs),
            "full" or a bool; None: as the decoder, with LoRA on them only if apply_lora_to_mlp is set.
        router_aux_loss_coef: weight of the load-balance loss relative to the mean loss of a token. Published
            trainings use 0.001.
    """
    config = _read(slots, config, resize_embeddings, tie_word_embeddings)
    training = plan_embeddings(plan_training(**trainable), embeddings_trainable, RESIZED_FROM in config)
    training = plan_experts(training, experts_trainable)
    options = {"loss_chunk_tokens": loss_chunk_tokens, "router_aux_loss_coef": router_aux_loss_coef}
    return _assemble(
        slots,
        config,
        training,
        (image_mean, image_std),
        text={"experts_adapter": training.experts_adapter},
        **options,
    )


def config_builder(
    slots: Slots,
    name: str,
    doc: str,
    *,
    module: str,
    build: Callable[..., VisionLanguageModel] = build_model,
) -> Callable[..., VisionLanguageModel]:
    """The builder of a family's models by config.json, with the arguments of `build`.

    Args:
        slots: the family's.
        name: of the builder, as users write it.
        doc: first paragraph of its docstring.
        module: the `__name__` of the module that defines it.
        build: `build_model` or `build_moe_model`.
    """

    def from_config(config: Config | str | Path, **arguments: Any) -> VisionLanguageModel:
        return build(slots, config, **arguments)

    return takes_arguments_of(build)(_called(from_config, name, doc, module))


def published_sizes(
    from_config: Callable[..., VisionLanguageModel],
    published_config: Callable[[str], dict[str, Any]],
    image_mean: Sequence[float],
    image_std: Sequence[float],
) -> Callable[[str, str, str], Callable[..., VisionLanguageModel]]:
    """(name, size, docstring) -> the builder of a published size, with the arguments of `from_config`."""

    def size_builder(name: str, size: str, doc: str) -> Callable[..., VisionLanguageModel]:
        def build(**arguments: Any) -> VisionLanguageModel:
            return from_config(published_config(size), **arguments)

        takes_arguments = takes_arguments_of(from_config, image_mean=image_mean, image_std=image_std)
        return takes_arguments(_called(build, name, doc, from_config.__module__))

    return size_builder


def _called(
    function: Callable[..., VisionLanguageModel], name: str, doc: str, module: str
) -> Callable[..., VisionLanguageModel]:
    function.__name__ = function.__qualname__ = name
    function.__module__, function.__doc__ = module, doc
    return function


def architecture(slots: Slots, config: Config) -> dict[str, Any]:
    """Every size and constant that a parsed config.json, in any of its forms, gives a model, by name.

    Args:
        slots: the family's.
        config: a folder's, or the one that a model was built from.

    Raises:
        ValueError: as `build_model`.
    """
    config = slots.normalise(config)
    vision, text = _tower_arguments(slots, config)
    return {
        **{f"vision encoder's {name}": value for name, value in vision.items()},
        **{f"decoder's {name}": value for name, value in text.items()},
        **{name: config[name] for name in ("image_token_id", "video_token_id")},
    }


def resized_config(config: dict[str, Any], rows: int | None) -> dict[str, Any]:
    """A normalised config with another number of rows of embeddings; the old one is noted in it.

    Raises:
        ValueError: fewer rows than the config has, or no whole number.
    """
    stored = config["text_config"]["vocab_size"]
    if rows is None or rows == stored:
        return config
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < stored:
        raise ValueError(
            f"resize_embeddings: expected at least the {stored} rows that config.json has (vocab_size), got "
            f"{rows!r}"
        )
    return {**config, RESIZED_FROM: stored, "text_config": {**config["text_config"], "vocab_size": rows}}


def _read(slots: Slots, config: Config | str | Path, rows: int | None, tied: bool | None) -> dict[str, Any]:
    """The config in its normal form, with what the arguments of the builders change in it."""
    changed = resized_config(slots.normalise(read_config(config)), rows)
    return changed if tied is None else {**changed, "tie_word_embeddings": tied}


def _assemble(
    slots: Slots,
    config: dict[str, Any],
    training: Training,
    scale: tuple[Sequence[float] | None, Sequence[float] | None],
    text: Config | None = None,
    **options: Any,
) -> VisionLanguageModel:
    of_encoder, of_decoder = _tower_arguments(slots, config)
    encoder = slots.vision_encoder(
        **of_encoder,
        image_mean=scale[0],
        image_std=scale[1],
        adapter=training.adapters["encoder"],
        merger_adapter=training.adapters["fusion"],
    )
    decoder = slots.decoder(
        **of_decoder,
        adapter=training.adapters["decoder"],
        **(text or {}),
    )
    return VisionLanguageModel(
        vision_encoder=encoder,
        decoder=decoder,
        image_token_id=config["image_token_id"],
        video_token_id=config["video_token_id"],
        training_plan=training,
        config=config,
        **options,
    )


def _tower_arguments(slots: Slots, config: Config) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments that a normalised config gives to the builders of encoder and decoder."""
    vision = _arguments({**_VISION, **slots.vision}, config["vision_config"])
    text = _arguments({**_TEXT, **slots.text}, config["text_config"])
    return vision, {**text, "tied": config["tie_word_embeddings"]}


def _arguments(entries: Entries, config: Config) -> dict[str, Any]:
    return {name: entry(config) if callable(entry) else config[entry] for name, entry in entries.items()}
