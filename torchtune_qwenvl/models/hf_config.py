"""Reading config.json of any family: the flat published form and the nested one of transformers 5.

Both come out as one plain dict: `text_config`, `vision_config`, `rope_parameters`, `dtype`, `in_channels`.
What a model would silently get wrong (sliding windows, unknown rotary types, sizes that do not divide) is
refused here; a family adds what only it has.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

_TOP = ("model_type", "image_token_id", "video_token_id")
_VISION_MARKS = ("vision_start_token_id", "vision_end_token_id")
_TEXT = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "rms_norm_eps", "max_position_embeddings",
)  # fmt: skip
_ROPE_TYPES = {"mrope": "default", "default": "default", "yarn": "yarn"}


def read_config(config: Mapping[str, Any] | str | Path) -> Mapping[str, Any]:
    """A parsed config.json as it is, or read from its path or its folder."""
    if isinstance(config, Mapping):
        return config
    path = Path(config)
    path = path / "config.json" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"no config.json at {path}: expected that of a checkpoint folder")
    return json.loads(path.read_text(encoding="utf-8"))


def normalise_config(
    raw: Mapping[str, Any],
    *,
    top: Collection[str] = _VISION_MARKS,
    text: Collection[str] = (),
    vision: Callable[[Mapping[str, Any]], dict[str, Any]],
    rope_theta: float | None = None,
) -> dict[str, Any]:
    """The nested form of either config.json, with what the model needs and nothing else.

    Args:
        raw: the parsed config.json.
        top: entries of the top level needed beside those of every family.
        text: entries of the text part needed beside those of every family.
        vision: what the family reads of the vision part, see `normalise_vision`.
        rope_theta: what a missing entry of that name means; None: it must be there.

    Raises:
        ValueError: naming the entry that is missing, does not fit or is not supported, and what came.
    """
    text_config, vision_config = raw.get("text_config") or raw, raw.get("vision_config")
    if not isinstance(vision_config, Mapping):
        raise ValueError("config.json has no vision_config: expected that of a vision-language model")
    heads = required(text_config, "num_attention_heads", "text")

    def top_down(*names: str) -> Any:
        """The top level decides: transformers 5 repeats class defaults in the text part."""
        found = first(raw, *names)
        return first(text_config, *names) if found is None else found

    config = {
        **{name: required(raw, name, "top level") for name in (*_TOP, *top)},
        "tie_word_embeddings": bool(top_down("tie_word_embeddings")),
        "dtype": top_down("dtype", "torch_dtype") or "float32",
        "text_config": {
            **{name: required(text_config, name, "text") for name in (*_TEXT, *text)},
            "num_key_value_heads": text_config.get("num_key_value_heads") or heads,
            "rope_parameters": _rope_parameters(text_config, rope_theta),
        },
        "vision_config": vision(vision_config),
    }
    _refuse_sliding_windows(text_config)
    check_activation(text_config, "silu", "text")
    _check_text(config["text_config"])
    return config


def normalise_vision(
    raw: Mapping[str, Any],
    needed: Collection[str],
    *,
    activation: str,
    width: str = "hidden_size",
    defaults: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The vision part of a config.json, or a config.json of the encoder alone, with what the encoder needs.

    Args:
        raw: the parsed part.
        needed: its entries.
        activation: the only `hidden_act` there is.
        width: the entry that is the encoder's width.
        defaults: what a missing entry means; transformers 4 leaves out what equals its class default.

    Raises:
        ValueError: naming the entry that is missing, does not fit or is not supported, and what came.
    """
    given = {**(defaults or {}), **raw}
    vision = {name: required(given, name, "vision_config") for name in needed}
    vision["in_channels"] = first(given, "in_channels", "in_chans") or 3
    check_activation(given, activation, "vision_config")
    check_multiple(vision[width], 4 * vision["num_heads"], f"vision {width} over 4 * num_heads")
    return vision


def first(config: Mapping[str, Any], *names: str) -> Any:
    """The first entry of these names that is there."""
    return next((config[name] for name in names if config.get(name) is not None), None)


def required(config: Mapping[str, Any], name: str, where: str) -> Any:
    """An entry that must be there."""
    if config.get(name) is None:
        raise ValueError(f"config.json ({where}): expected an entry {name!r}, found {sorted(config)}")
    return config[name]


def check_multiple(value: int, of: int, what: str) -> None:
    """Refuse sizes that do not divide."""
    if of < 1 or value % of:
        raise ValueError(f"config.json: {what}: {value} is no multiple of {of}")


def check_activation(config: Mapping[str, Any], expected: str, where: str) -> None:
    """Refuse another activation than the family's."""
    if config.get("hidden_act", expected) != expected:
        raise ValueError(
            f"config.json ({where}): expected hidden_act {expected}, got {config['hidden_act']!r}"
        )


def check_visual_width(width: int, name: str, text: Mapping[str, Any]) -> None:
    """Refuse visual tokens that do not fit the embeddings."""
    if width != text["hidden_size"]:
        raise ValueError(
            f"config.json: visual tokens of width {width} ({name}) do not fit "
            f"embeddings of width {text['hidden_size']} (hidden_size)"
        )


def check_layers(indexes: Sequence[int], depth: int, what: str) -> None:
    """Refuse layers that the encoder does not have."""
    if beyond := [i for i in indexes if not 0 <= i < depth]:
        raise ValueError(f"config.json: {what} {beyond} beyond the {depth} vision layers")


def yarn_arguments(text: Mapping[str, Any]) -> dict[str, Any] | None:
    """Arguments of `yarn_frequencies` in a normalised text config; None without a stretched context."""
    rope = text["rope_parameters"]
    if rope["rope_type"] != "yarn":
        return None
    return {
        "factor": rope["factor"],
        "original_length": rope.get("original_max_position_embeddings") or text["max_position_embeddings"],
        "beta_fast": rope.get("beta_fast") or 32.0,
        "beta_slow": rope.get("beta_slow") or 1.0,
    }


def head_width(text: Mapping[str, Any]) -> int:
    """Width of a head: its own entry, or an equal share of the stream."""
    return text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]


def rotary_width(text: Mapping[str, Any]) -> int:
    """How many values of a head are rotated: all, or the share that a partial rotary embedding has."""
    return int(head_width(text) * text["rope_parameters"].get("partial_rotary_factor", 1.0))


def _rope_parameters(text: Mapping[str, Any], default_theta: float | None) -> dict[str, Any]:
    rope = dict(first(text, "rope_parameters", "rope_scaling") or {})
    kind = rope.pop("type", None)
    kind = rope.pop("rope_type", kind) or "default"
    if kind not in _ROPE_TYPES:
        raise ValueError(
            f"config.json: rotary type {kind!r} is not supported, expected one of {sorted(_ROPE_TYPES)}"
        )
    if "mrope_section" not in rope:
        raise ValueError(
            f"config.json: expected mrope_section in rope_scaling or rope_parameters, got {rope}"
        )
    if "rope_theta" not in rope:
        rope["rope_theta"] = text.get("rope_theta") or default_theta or required(text, "rope_theta", "text")
    if text.get("partial_rotary_factor"):  # published; in rope_parameters since 5.x
        rope.setdefault("partial_rotary_factor", text["partial_rotary_factor"])
    return {"rope_type": _ROPE_TYPES[kind], **rope}


def _refuse_sliding_windows(text: Mapping[str, Any]) -> None:
    if text.get("use_sliding_window") or "sliding_attention" in (text.get("layer_types") or ()):
        raise ValueError("config.json: use_sliding_window is true, which is not supported: set it to false")


def _check_text(text: Mapping[str, Any]) -> None:
    heads = text["num_attention_heads"]
    if "head_dim" not in text:
        check_multiple(text["hidden_size"], heads, "hidden_size over num_attention_heads")
    check_multiple(heads, text["num_key_value_heads"], "num_attention_heads over num_key_value_heads")
    sections, half = text["rope_parameters"]["mrope_section"], rotary_width(text) / 2
    if sum(sections) != half or len(sections) != 3:
        raise ValueError(
            f"config.json: mrope_section {sections}: expected 3 numbers that sum to half a head's "
            f"rotated width, {half:g}"
        )
