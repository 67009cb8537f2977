"""What kind of value an entry of a JSON file must have, as data.

    check_entries(config, {"hidden_size": COUNT, "hidden_act": TEXT}, "config.json")

A value of another kind would fail later, somewhere inside of torch, without the file's name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """A kind of value.

    Attributes:
        words: what it is called in an error.
        holds: whether a value is of it.
    """

    words: str
    holds: Callable[[Any], bool]


def _is_whole(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e30 and math.isfinite(value)


def list_of(kind: Kind) -> Kind:
    """A list whose elements are of a kind."""
    return Kind(
        f"a list of {kind.words} each",
        lambda value: isinstance(value, list | tuple) and all(map(kind.holds, value)),
    )


COUNT = Kind("a whole number from 1 to 2^24", lambda value: _is_whole(value, 1, 2**24))
LAYERS = Kind("a whole number from 1 to 1,000", lambda value: _is_whole(value, 1, 1000))
LENGTH = Kind("a whole number from 1 to 2^48", lambda value: _is_whole(value, 1, 2**48))
NATURAL = Kind("a whole number from 0 to 2^31", lambda value: _is_whole(value, 0, 2**31))
POSITIVE = Kind("a number above 0", lambda value: _is_number(value) and value > 0)
NUMBER = Kind("a number", _is_number)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("a text", lambda value: isinstance(value, str))
OBJECT = Kind("an object", lambda value: isinstance(value, Mapping))
NUMBERS = list_of(NUMBER)


def check_entries(content: Mapping[str, Any], kinds: Mapping[str, Kind], where: str) -> None:
    """Raise a ValueError if an entry that is there, and not null, is of another kind than it should be.

    Args:
        content: the object.
        kinds: entry -> what its value must be.
        where: begins the error: the file, and the part of it.
    """
    for name, kind in kinds.items():
        value = content.get(name)
        if value is not None and not kind.holds(value):
            shown = ascii(value)
            shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
            raise ValueError(f"{where}: {name}: expected {kind.words}, got {shown}")
