"""Reading config.json of any family: the flat published form and the nested one of transformers 5.

Both become one plain dict with `text_config`, `vision_config`, `rope_parameters`, `dtype`, `in_channels`.
What a model would silently get wrong is refused here: sliding windows, unknown rotary types, sizes that do
not divide. A family states what is its own as `ConfigRules`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torchtune_qwenvl.entries import (
    COUNT,
    FLAG,
    LAYERS,
    LENGTH,
    NATURAL,
    NUMBER,
    OBJECT,
    POSITIVE,
    TEXT,
    check_entries,
    list_of,
)
from torchtune_qwenvl.models.rope_config import check_rope, read_rope

_TOP = ("model_type", "image_token_id", "video_token_id")
_VISION_MARKS = ("vision_start_token_id", "vision_end_token_id")
_TEXT = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "rms_norm_eps", "max_position_embeddings",
)  # fmt: skip
# Entries of the vision part that all families but Qwen2-VL need.
VISION = (
    "depth", "hidden_size", "intermediate_size", "num_heads", "out_hidden_size", "patch_size",
    "spatial_merge_size", "temporal_patch_size",
)  # fmt: skip
# What a value must be where it is no `COUNT`, by the entry's name in any part.
_KINDS = {
    "model_type": TEXT,
    "hidden_act": TEXT,
    "dtype": TEXT,
    "torch_dtype": TEXT,
    "image_token_id": NATURAL,
    "video_token_id": NATURAL,
    **dict.fromkeys(_VISION_MARKS, NATURAL),
    "num_hidden_layers": LAYERS,
    "depth": LAYERS,
    "max_position_embeddings": LENGTH,
    "rms_norm_eps": POSITIVE,
    "mlp_ratio": POSITIVE,
    "tokens_per_second": POSITIVE,
    "routed_scaling_factor": NUMBER,
    "rope_theta": POSITIVE,
    "partial_rotary_factor": POSITIVE,
    "first_k_dense_replace": NATURAL,
    "n_shared_experts": NATURAL,
    "tie_word_embeddings": FLAG,
    "use_sliding_window": FLAG,
    "attention_bias": FLAG,
    "norm_topk_prob": FLAG,
    "use_qk_norm": FLAG,
    "layer_types": list_of(TEXT),
    **dict.fromkeys(
        ("fullatt_block_indexes", "deepstack_visual_indexes", "mlp_only_layers"), list_of(NATURAL)
    ),
}
# Counts that a family may leave out, so that `required` does not see them.
_OPTIONAL_COUNTS = (
    *("num_key_value_heads", "head_dim", "in_channels", "in_chans", "decoder_sparse_step"),
    *("n_group", "topk_group", "num_local_experts", "n_routed_experts", "original_max_position_embeddings"),
)
_OPTIONAL = {**_KINDS, **dict.fromkeys(_OPTIONAL_COUNTS, COUNT)}


@dataclass(frozen=True, kw_only=True)
class ConfigRules:
    """What a family's config.json must say in addition to what every family's says.

    Args:
        vision: entries that the vision part needs.
        vision_defaults: values of missing ones; transformers 4 leaves out what equals its class default.
        vision_activation: the only `hidden_act` of the vision part that is supported.
        vision_width: the entry with the encoder's width.
        token_width: the entry with the width of a visual token, which must be the decoder's.
        layer_list: an entry that lists layers of the encoder.
        top: entries that the top level needs.
        text: entries that the text part needs.
        rope_theta: value of a missing entry of that name; None: it must be there.
    """

    vision: Collection[str]
    vision_defaults: Mapping[str, Any] = field(default_factory=dict)
    vision_activation: str
    vision_width: str = "hidden_size"
    token_width: str = "out_hidden_size"
    layer_list: str | None = None
    top: Collection[str] = _VISION_MARKS
    text: Collection[str] = ()
    rope_theta: float | None = None


def normalise_config(
    raw: Mapping[str, Any],
    rules: ConfigRules,
    vision_part: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """The nested form of either config.json, with what the model needs and nothing else.

    Args:
        raw: the parsed config.json.
        rules: the family's.
        vision_part: the family's way to read the vision part; None: `normalise_vision` by the rules.

    Raises:
        ValueError: an entry is missing, does not fit or is not supported; it names the entry and the value.
    """
    if not raw.get("vision_config"):
        raise ValueError("config.json has no vision_config: expected that of a vision-language model")
    check_entries(raw, {"text_config": OBJECT, "vision_config": OBJECT, **_OPTIONAL}, "config.json")
    text, vision = raw.get("text_config") or raw, raw["vision_config"]

    def top_down(*names: str) -> Any:
        """The top level decides: transformers 5 repeats class defaults in the text part."""
        found = first(raw, *names)
        return first(text, *names) if found is None else found

    config = {
        **{name: required(raw, name, "top level") for name in (*_TOP, *rules.top)},
        "tie_word_embeddings": bool(top_down("tie_word_embeddings")),
        "dtype": top_down("dtype", "torch_dtype") or "float32",
        "text_config": _text_part(text, rules),
        "vision_config": normalise_vision(vision, rules) if vision_part is None else vision_part(vision),
    }
    check_visual_width(config["vision_config"][rules.token_width], rules.token_width, config["text_config"])
    return config


def _text_part(given: Mapping[str, Any], rules: ConfigRules) -> dict[str, Any]:
    check_entries(given, _OPTIONAL, "config.json (text)")
    heads = required(given, "num_attention_heads", "text")
    text = {
        **{name: required(given, name, "text") for name in (*_TEXT, *rules.text)},
        "num_key_value_heads": given.get("num_key_value_heads") or heads,
        "rope_parameters": read_rope(given, rules.rope_theta),
    }
    _refuse_sliding_windows(given)
    check_activation(given, "silu", "text")
    _check_text(text)
    return text


def normalise_vision(raw: Mapping[str, Any], rules: ConfigRules) -> dict[str, Any]:
    """The vision part of a config.json, or a config.json of the encoder alone, with what the encoder needs.

    Args:
        raw: the parsed part.
        rules: the family's.

    Raises:
        ValueError: see `normalise_config`.
    """
    check_entries(raw, _OPTIONAL, "config.json (vision_config)")
    given = {**rules.vision_defaults, **raw}
    vision = {
        **{name: required(given, name, "vision_config") for name in rules.vision},
        "in_channels": first(given, "in_channels", "in_chans") or 3,
    }
    check_activation(given, rules.vision_activation, "vision_config")
    width = rules.vision_width
    check_multiple(vision[width], 4 * vision["num_heads"], f"vision {width} over 4 * num_heads")
    if (name := rules.layer_list) is not None:
        vision[name] = list(vision[name])
        check_layers(vision[name], vision["depth"], name)
    return vision


def first(config: Mapping[str, Any], *names: str) -> Any:
    """The first of these entries that is there, or None."""
    return next((config[name] for name in names if config.get(name) is not None), None)


def required(config: Mapping[str, Any], name: str, where: str) -> Any:
    """An entry that must be there, and of its kind."""
    if config.get(name) is None:
        raise ValueError(f"config.json ({where}): expected an entry {name!r}, found {sorted(config)}")
    check_entries(config, {name: _KINDS.get(name, COUNT)}, f"config.json ({where})")
    return config[name]


def check_multiple(value: int, of: int, what: str) -> None:
    """Refuse sizes that do not divide."""
    if of < 1 or value % of:
        raise ValueError(f"config.json: {what}: {value} is no multiple of {of}")


def check_activation(config: Mapping[str, Any], expected: str, where: str) -> None:
    """Refuse an activation that is not the family's."""
    if config.get("hidden_act", expected) != expected:
        raise ValueError(
            f"config.json ({where}): expected hidden_act {expected}, got {config['hidden_act']!r}"
        )


def check_visual_width(width: int, name: str, text: Mapping[str, Any]) -> None:
    """Refuse visual tokens that do not fit the embeddings."""
    if width != text["hidden_size"]:
        raise ValueError(
            f"config.json: visual tokens of width {width} ({name} of vision_config) do not fit "
            f"embeddings of width {text['hidden_size']} (hidden_size)"
        )


def check_layers(indexes: Sequence[int], depth: int, what: str) -> None:
    """Refuse layers that the encoder does not have."""
    if beyond := [i for i in indexes if not 0 <= i < depth]:
        raise ValueError(f"config.json: {what} {beyond} beyond the {depth} vision layers")


def check_range(text: Mapping[str, Any], name: str, most: int, what: str) -> None:
    """Refuse an entry of the text part that is not in 1 .. `most`, the value of `what`."""
    if not 1 <= text[name] <= most:
        raise ValueError(f"config.json (text): {name} {text[name]}: expected 1 to {what}, {most}")


def _refuse_sliding_windows(text: Mapping[str, Any]) -> None:
    if text.get("use_sliding_window") or "sliding_attention" in (text.get("layer_types") or ()):
        raise ValueError("config.json: use_sliding_window is true, which is not supported: set it to false")


def _check_text(text: Mapping[str, Any]) -> None:
    heads = text["num_attention_heads"]
    if "head_dim" not in text:
        check_multiple(text["hidden_size"], heads, "hidden_size over num_attention_heads")
    check_multiple(heads, text["num_key_value_heads"], "num_attention_heads over num_key_value_heads")
    check_rope(text)
