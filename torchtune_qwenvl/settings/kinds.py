"""What a value of a config may be: a test, and the words that say what it expects."""

import math
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchtune_qwenvl.settings.datasets import COMPONENT


@dataclass(frozen=True)
class Kind:
    """What a key takes.

    Attributes:
        says: completes "expected …" in an error, and describes the key in the documentation.
        fits: whether a value, without interpolations, is of this kind.
    """

    says: str
    fits: Callable[[Any], bool]

    def check(self, key: str, value: Any) -> None:
        """Raise a ValueError that names the key, what was expected and what came."""
        if not self.fits(value):
            raise ValueError(f"Config key '{key}': expected {self.says}, got {value!r}.")

    def __or__(self, other: "Kind") -> "Kind":
        return Kind(f"{self.says} or {other.says}", lambda value: self.fits(value) or other.fits(value))


def whole(low: int, high: int | None = None) -> Kind:
    """An int of at least `low` and at most `high`; a bool is none."""
    limits = f"of at least {low:,}" if high is None else f"from {low:,} to {high:,}"
    return Kind(f"a whole number {limits}", lambda value: _is_int(value) and _within(value, low, high))


def number(
    low: float | None = None,
    high: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
) -> Kind:
    """A finite number from `low` to `high`, or greater than `above` and less than `below`."""
    words = (
        *([] if low is None else [f"at least {low:g}"]),
        *([] if above is None else [f"greater than {above:g}"]),
        *([] if high is None else [f"at most {high:g}"]),
        *([] if below is None else [f"less than {below:g}"]),
    )

    def fits(value: Any) -> bool:
        if not is_number(value) or not _within(value, low, high):
            return False
        return (above is None or value > above) and (below is None or value < below)

    return Kind(f"a number {' and '.join(words)}" if words else "a finite number", fits)


def choice(*words: str) -> Kind:
    """One of these words."""
    return Kind(" or ".join(f"'{word}'" for word in words), lambda value: value in words)


def matching(says: str, fits: Callable[[str], bool]) -> Kind:
    """A text for which `fits` is true."""
    return Kind(says, lambda value: isinstance(value, str) and fits(value))


def some_of(kind: Kind, says: str, length: int | None = None) -> Kind:
    """A list of values of one kind."""

    def fits(value: Any) -> bool:
        return isinstance(value, list) and length in (None, len(value)) and all(map(kind.fits, value))

    return Kind(says, fits)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number and no bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and _is_finite(value)


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond the largest float
        return False


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _within(value: float, low: float | None, high: float | None) -> bool:
    return (low is None or value >= low) and (high is None or value <= high)


BOOL = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = matching("a text", lambda value: bool(value.strip()))
ANY_TEXT = matching("a text", lambda value: True)
NULL = Kind("null", lambda value: value is None)
MAPPING = Kind("a mapping", lambda value: isinstance(value, dict))
_NODE = Kind("a component", lambda value: isinstance(value, dict) and isinstance(value.get(COMPONENT), str))
COMPONENT_NODE = Kind("a component (name one by KEY._component_=…)", _NODE.fits)
COMPONENTS = some_of(_NODE, "a list of components (each with a _component_)")

_OF_TYPES = {
    bool: BOOL,
    int: Kind("a whole number", _is_int),
    float: Kind("a number", lambda value: isinstance(value, (int, float)) and not isinstance(value, bool)),
    str: ANY_TEXT,
    Path: ANY_TEXT,
    type(None): NULL,
}


def kind_of_hint(hint: Any) -> Kind | None:
    """The kind of a type hint made of bool, int, float, str, Path, None, Literal and unions; else None.

    Other types come from YAML in forms of their own, which only the component knows.
    """
    if hint in _OF_TYPES:
        return _OF_TYPES[hint]
    members = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return choice(*members) if all(isinstance(member, str) for member in members) else None
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return None
    kinds = [kind_of_hint(member) for member in members]
    known = [kind for kind in kinds if kind is not None]
    if len(known) < len(kinds):
        return None
    joined = known[0]
    for kind in known[1:]:
        joined = joined if kind.says in joined.says else joined | kind
    return joined
