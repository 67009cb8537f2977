"""What a config.json of Qwen3.5 must say in addition to what every family's says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchtune_qwenvl.entries import COUNT, NATURAL, OBJECT, TEXT, check_entries, list_of
from torchtune_qwenvl.models import hf_config as shared
from torchtune_qwenvl.models.qwen3_vl import _hf_config as qwen3_vl

LINEAR, FULL = "linear_attention", "full_attention"
_LINEAR_SIZES = (
    "linear_num_key_heads",
    "linear_num_value_heads",
    "linear_key_head_dim",
    "linear_value_head_dim",
    "linear_conv_kernel_dim",
)
RULES = shared.ConfigRules(
    text=("head_dim", *_LINEAR_SIZES),
    vision=(*shared.VISION, "num_position_embeddings"),
    vision_activation="gelu_pytorch_tanh",
)
_KINDS = {
    "layer_types": list_of(TEXT),
    "full_attention_interval": COUNT,
    "mtp_num_hidden_layers": NATURAL,
    "rope_parameters": OBJECT,
    "rope_scaling": OBJECT,
}
_ROTATED_SHARE = 0.25  # where a file does not say it, as in transformers
_GATES = (None, "swish", "silu")  # Qwen3.8's files name the delta nets' gate


def normalise_vision(raw: Mapping[str, Any]) -> dict[str, Any]:
    """See `torchtune_qwenvl.models.hf_config.normalise_vision`."""
    if raw.get("deepstack_visual_indexes"):
        raise ValueError(
            f"config.json: deepstack_visual_indexes {raw['deepstack_visual_indexes']}: expected none, as in "
            "every Qwen3.5"
        )
    return qwen3_vl.normalise_vision({**raw, "deepstack_visual_indexes": []})


def normalise_config(raw: Mapping[str, Any]) -> dict[str, Any]:
    """See `torchtune_qwenvl.models.hf_config.normalise_config`; adds `layer_types`."""
    check_entries(raw, {"text_config": OBJECT}, "config.json")
    given = dict(raw.get("text_config") or raw)
    check_entries(given, _KINDS, "config.json (text)")
    given.setdefault("partial_rotary_factor", _ROTATED_SHARE)
    _refuse_other_attention(given)
    layer_types = _layer_types(given)
    given["layer_types"] = layer_types
    config = shared.normalise_config({**raw, "text_config": given}, RULES, normalise_vision)
    text = config["text_config"]
    text["layer_types"] = layer_types
    text["mtp_num_hidden_layers"] = given.get("mtp_num_hidden_layers") or 0
    values, keys = text["linear_num_value_heads"], text["linear_num_key_heads"]
    shared.check_multiple(values, keys, "linear_num_value_heads over linear_num_key_heads")
    return config


def _layer_types(text: Mapping[str, Any]) -> list[str]:
    layers = shared.required(text, "num_hidden_layers", "text")
    step = text.get("full_attention_interval") or 4
    found = list(text.get("layer_types") or [LINEAR if (i + 1) % step else FULL for i in range(layers)])
    if unknown := sorted({str(kind) for kind in found} - {LINEAR, FULL}):
        raise ValueError(
            f"config.json (text): layer_types has {', '.join(unknown)}: expected {LINEAR} or {FULL} for "
            "each layer"
        )
    if len(found) != layers:
        raise ValueError(
            f"config.json (text): {len(found)} layer_types for {layers} layers (num_hidden_layers)"
        )
    return found


def _refuse_other_attention(text: Mapping[str, Any]) -> None:
    expected = {"attention_bias": (None, False), "attn_output_gate": (None, True), "output_gate_type": _GATES}
    for name, allowed in expected.items():
        if text.get(name) not in allowed:
            raise ValueError(f"config.json (text): {name} is {text[name]!r}, which is not supported")
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if rope.get("mrope_interleaved") is False:
        raise ValueError("config.json: mrope_interleaved is false, which no Qwen3.5 is")
