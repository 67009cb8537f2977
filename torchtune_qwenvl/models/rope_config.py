"""The rotary part of config.json: `rope_scaling` as published before transformers 5, `rope_parameters` since.

Both become one dict with `rope_type`, `rope_theta`, `mrope_section` and what the rule of that type reads. A
key that the rule does not read is refused: whoever wrote it expects other frequencies than it would get.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Every type's keys; "mrope" is what Qwen's files call the default.
_COMMON = ("rope_theta", "mrope_section", "mrope_interleaved", "partial_rotary_factor")
_ORIGINAL = "original_max_position_embeddings"


@dataclass(frozen=True)
class _Keys:
    """Keys of a rope type in addition to `_COMMON`.

    Attributes:
        needed: those that must be there.
        optional: those that may; None in the file is as if they were not there.
        lists: those of the needed ones that have a number per frequency.
    """

    needed: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()


_KEYS = {
    "default": _Keys(),
    "linear": _Keys(("factor",)),
    "dynamic": _Keys(("factor",)),
    "llama3": _Keys(("factor", "low_freq_factor", "high_freq_factor"), (_ORIGINAL,)),
    "longrope": _Keys(
        ("short_factor", "long_factor"),
        ("factor", _ORIGINAL, "attention_factor"),
        lists=("short_factor", "long_factor"),
    ),
    "yarn": _Keys(
        (),
        (
            *("factor", _ORIGINAL, "attention_factor", "beta_fast", "beta_slow"),
            *("mscale", "mscale_all_dim", "truncate"),
        ),
    ),
}
_PUBLISHED_NAMES = {"mrope": "default"}
# transformers takes 0 for a missing one.
_ZERO_IS_NONE = ("beta_fast", "beta_slow", "mscale", "mscale_all_dim")


def read_rope(text: Mapping[str, Any], default_theta: float | None) -> dict[str, Any]:
    """The rotary part of a text config, checked; every key of its type that has a value.

    Args:
        text: the text part of a config.json, or a flat one.
        default_theta: value of a missing `rope_theta`; None: it must be there.

    Raises:
        ValueError: an unknown type or key, a missing one, a value out of range, or two contradicting parts.
    """
    rope = _given(text)
    kind = rope.pop("type", None)
    kind = rope.pop("rope_type", None) or kind or "default"
    kind = _PUBLISHED_NAMES.get(kind, kind) if isinstance(kind, str) else kind
    if not isinstance(kind, str) or kind not in _KEYS:
        raise ValueError(
            f"config.json: rotary type {kind!r} is not supported, expected one of "
            f"{sorted((*_KEYS, *_PUBLISHED_NAMES))}"
        )
    keys = _KEYS[kind]
    allowed = (*_COMMON, *keys.needed, *keys.optional)
    if unknown := sorted(name for name in rope if name not in allowed):
        raise ValueError(
            f"config.json: {unknown[0]} = {rope[unknown[0]]!r} in rope_scaling or rope_parameters is not "
            f"known for the rotary type {kind!r}, which reads {', '.join(allowed)}: remove it or correct the "
            "type"
        )
    rope = {name: value for name, value in rope.items() if value is not None or name == "truncate"}
    if kind != "default" and _ORIGINAL in keys.optional and text.get(_ORIGINAL):
        rope[_ORIGINAL] = text[_ORIGINAL]  # decides in transformers, too
    for name, value in (("rope_theta", default_theta), ("partial_rotary_factor", None)):
        if (found := text.get(name) or value) is not None:
            rope.setdefault(name, found)
    for name in ("mrope_section", "rope_theta", *keys.needed):
        if name not in rope:
            raise ValueError(
                f"config.json: expected {name} in rope_scaling or rope_parameters, got {dict(rope)}"
            )
    _check_values(rope, keys)
    return {"rope_type": kind, **rope}


def rope_scaling(text: Mapping[str, Any]) -> dict[str, Any] | None:
    """`scaled_frequencies`' argument for a normalised text config; None if the context was not stretched."""
    rope = text["rope_parameters"]
    kind, length = rope["rope_type"], text["max_position_embeddings"]
    if kind == "default":
        return None
    keys = _KEYS[kind]
    found = {name: rope[name] for name in (*keys.needed, *keys.optional) if name in rope}
    if kind == "dynamic":
        return {"rope_type": kind, "length": length, **found}
    if _ORIGINAL in keys.optional:
        original = found.pop(_ORIGINAL, length)
        found["original_length"] = original
        found.setdefault("factor", length / original)
    return {"rope_type": kind, **{n: value for n, value in found.items() if value or n not in _ZERO_IS_NONE}}


def rotary_width(text: Mapping[str, Any]) -> int:
    """How many values of a head are rotated: all of them, or the share `partial_rotary_factor`."""
    return int(head_width(text) * text["rope_parameters"].get("partial_rotary_factor", 1.0))


def head_width(text: Mapping[str, Any]) -> int:
    """Width of a head: its own entry, or an equal share of the stream."""
    return text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]


def check_rope(text: Mapping[str, Any]) -> None:
    """Refuse sections and lists of factors that do not fit a head's width."""
    rope, half = text["rope_parameters"], rotary_width(text) / 2
    sections = rope["mrope_section"]
    if sum(sections) != half or len(sections) != 3:
        raise ValueError(
            f"config.json: mrope_section {sections}: expected 3 numbers that sum to half a head's "
            f"rotated width, {half:g}"
        )
    for name in _KEYS[rope["rope_type"]].lists:
        if len(rope[name]) != half:
            raise ValueError(f"config.json: {name} has {len(rope[name])} numbers, expected {half:g}")


def _given(text: Mapping[str, Any]) -> dict[str, Any]:
    """The part that is there; both only if they say the same."""
    parts = [text[name] for name in ("rope_parameters", "rope_scaling") if text.get(name)]
    for part in parts:
        if not isinstance(part, Mapping):
            raise ValueError(f"config.json: expected rope_scaling to be an object, got {part!r}")
    if len(parts) == 2 and (differ := [n for n in parts[0] if parts[0][n] != parts[1].get(n, parts[0][n])]):
        raise ValueError(
            f"config.json: rope_parameters and rope_scaling contradict each other, in {differ[0]} first: "
            "delete one of the two"
        )
    return {name: value for part in parts for name, value in part.items()}


def _check_values(rope: Mapping[str, Any], keys: _Keys) -> None:
    sections = rope["mrope_section"]
    if not isinstance(sections, list | tuple) or not all(_is_count(one) for one in sections):
        raise ValueError(f"config.json: mrope_section {sections!r}: expected 3 numbers")
    for name, value in rope.items():
        if name in ("mrope_section", "mrope_interleaved", "truncate"):
            continue
        if name in keys.lists:
            if not isinstance(value, list | tuple) or not all(_is_positive(one) for one in value):
                raise ValueError(f"config.json: {name}: expected a list of numbers above 0, got {value!r}")
        elif not (_is_positive(value) or (name in _ZERO_IS_NONE and _is_zero(value))):
            raise ValueError(f"config.json: {name} = {value!r}: expected a number above 0")
    if rope["rope_theta"] <= 1 or rope.get("partial_rotary_factor", 1) > 1:
        raise ValueError("config.json: expected rope_theta > 1 and partial_rotary_factor <= 1")


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e15


def _is_zero(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == 0


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
