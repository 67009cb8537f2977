"""Reads config.json of a Qwen2.5-VL folder, in the flat published form and the nested one of transformers 5.

Both come out as one plain dict: `text_config`, `vision_config`, `rope_parameters`, `dtype`, `in_channels`.
What the model would silently get wrong (sliding windows, unknown rotary types, sizes that do not divide) is
refused here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TOP = ("model_type", "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
_TEXT = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "rms_norm_eps", "max_position_embeddings",
)  # fmt: skip
_VISION = (
    "depth", "hidden_size", "intermediate_size", "num_heads", "out_hidden_size", "patch_size",
    "spatial_merge_size", "temporal_patch_size", "window_size", "fullatt_block_indexes",
)  # fmt: skip
_ROPE_TYPES = {"mrope": "default", "default": "default", "yarn": "yarn"}


def normalise_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The nested form of either config.json, with what the model needs and nothing else.

    Raises:
        ValueError: naming the entry that is missing, does not fit or is not supported, and what came.
    """
    text, vision = raw.get("text_config") or raw, raw.get("vision_config")
    if not isinstance(vision, Mapping):
        raise ValueError("config.json has no vision_config: expected that of a Qwen2.5-VL model")
    heads = _required(text, "num_attention_heads", "text")
    config = {
        **{name: _required(raw, name, "top level") for name in _TOP},
        "tie_word_embeddings": bool(raw.get("tie_word_embeddings") or text.get("tie_word_embeddings")),
        "dtype": _first(raw, "dtype", "torch_dtype") or _first(text, "dtype", "torch_dtype") or "float32",
        "text_config": {
            **{name: _required(text, name, "text") for name in _TEXT},
            "num_key_value_heads": text.get("num_key_value_heads") or heads,
            "rope_parameters": _rope_parameters(text),
        },
        "vision_config": {
            **{name: _required(vision, name, "vision_config") for name in _VISION},
            "in_channels": _first(vision, "in_channels", "in_chans") or 3,
            "tokens_per_second": vision.get("tokens_per_second", 4),
        },
    }
    config["vision_config"]["fullatt_block_indexes"] = list(config["vision_config"]["fullatt_block_indexes"])
    _refuse_unsupported(text, vision)
    _check_sizes(config["text_config"], config["vision_config"])
    return config


def _first(config: Mapping[str, Any], *names: str) -> Any:
    return next((config[name] for name in names if config.get(name) is not None), None)


def _required(config: Mapping[str, Any], name: str, where: str) -> Any:
    if config.get(name) is None:
        raise ValueError(f"config.json ({where}): expected an entry {name!r}, found {sorted(config)}")
    return config[name]


def _rope_parameters(text: Mapping[str, Any]) -> dict[str, Any]:
    rope = dict(_first(text, "rope_parameters", "rope_scaling") or {})
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
    rope.setdefault("rope_theta", text.get("rope_theta", 1e6))
    return {"rope_type": _ROPE_TYPES[kind], **rope}


def _refuse_unsupported(text: Mapping[str, Any], vision: Mapping[str, Any]) -> None:
    if text.get("use_sliding_window") or "sliding_attention" in (text.get("layer_types") or ()):
        raise ValueError("config.json: use_sliding_window is true, which is not supported: set it to false")
    for where, config in (("text", text), ("vision_config", vision)):
        if config.get("hidden_act", "silu") != "silu":
            raise ValueError(f"config.json ({where}): expected hidden_act silu, got {config['hidden_act']!r}")


def _check_sizes(text: Mapping[str, Any], vision: Mapping[str, Any]) -> None:
    def multiple(value: int, of: int, what: str) -> None:
        if of < 1 or value % of:
            raise ValueError(f"config.json: {what}: {value} is no multiple of {of}")

    multiple(text["hidden_size"], text["num_attention_heads"], "hidden_size over num_attention_heads")
    multiple(
        text["num_attention_heads"],
        text["num_key_value_heads"],
        "num_attention_heads over num_key_value_heads",
    )
    multiple(vision["hidden_size"], 4 * vision["num_heads"], "vision hidden_size over 4 * num_heads")
    multiple(
        vision["window_size"],
        vision["patch_size"] * vision["spatial_merge_size"],
        "window_size over patch_size * spatial_merge_size",
    )
    head_dim = text["hidden_size"] // text["num_attention_heads"]
    sections = text["rope_parameters"]["mrope_section"]
    if 2 * sum(sections) != head_dim or len(sections) != 3:
        raise ValueError(
            f"config.json: mrope_section {sections}: expected 3 that sum to half a head, {head_dim / 2}"
        )
    if vision["out_hidden_size"] != text["hidden_size"]:
        raise ValueError(
            f"config.json: visual tokens of width {vision['out_hidden_size']} (out_hidden_size) do not fit "
            f"embeddings of width {text['hidden_size']} (hidden_size)"
        )
    beyond = [i for i in vision["fullatt_block_indexes"] if not 0 <= i < vision["depth"]]
    if beyond:
        raise ValueError(
            f"config.json: fullatt_block_indexes {beyond} beyond the {vision['depth']} vision layers"
        )
