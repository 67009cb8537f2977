"""Text and JSON of records: what cannot be read is a bad sample that says why."""

import json
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

from torchtune_qwenvl.transforms.errors import BadSample

_CUT = (
    "half of a character, {!r}: text that was cut in the middle of an emoji or another character of two units"
)


class JsonObject(dict):
    """A record of a JSON file.

    Attributes:
        repeated: keys that an object of it has more than once; the last value counts, as JSON readers do.
    """

    repeated: tuple[str, ...] = ()


def parse_json(data: str | bytes) -> Any:
    """The record in a line or an element of a JSON file; objects at its top are :class:`JsonObject`.

    Raises:
        BadSample: not valid JSON, or nested too deeply for Python's reader.
    """
    repeated: list[str] = []

    def make(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            keys = [key for key, _ in pairs]
            repeated.extend(key for key in made if keys.count(key) > 1)
        return made

    try:
        record = json.loads(data, object_pairs_hook=make)
    except ValueError as error:
        raise BadSample(f"not valid JSON: {error}", fix="correct or remove the line") from error
    except RecursionError as error:
        raise BadSample("JSON that is nested too deeply", fix="correct or remove the line") from error
    if isinstance(record, dict) and repeated:
        record = JsonObject(record)
        record.repeated = tuple(dict.fromkeys(repeated))
    return record


def from_json(value: Any, where: str) -> Any:
    """A value, or what its JSON says if it is a string.

    Raises:
        BadSample: not valid JSON, or nested too deeply for Python's reader.
    """
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError as error:
        raise BadSample(f"not valid JSON: {error}", where=where, fix="correct or remove it") from error
    except RecursionError as error:
        raise BadSample("JSON that is nested too deeply", where=where, fix="remove it") from error


def lists_in(value: Any, where: str) -> Any:
    """A value, or the list that it is the JSON of, if it is a text that begins with [.

    Raises:
        BadSample: such a text is not valid JSON.
    """
    return from_json(value, where) if isinstance(value, str) and value.lstrip().startswith("[") else value


def as_text(value: Any, where: str) -> str:
    """`value`, if it is text.

    Raises:
        BadSample: something else, or text that no tokenizer takes since it has half of a character.
    """
    if is_null(value):
        raise BadSample("expected text, got null", where=where, fix="write it, or remove the sample")
    if not isinstance(value, str):
        raise BadSample(f"expected text, got {type(value).__name__}", where=where, fix="make it a string")
    return whole_characters(value, where)


def whole_characters(text: str, where: str) -> str:
    """`text`; a BadSample if it has a lone surrogate, which is half of a character."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = _CUT.format(text[error.start])
        raise BadSample(half, where=where, fix="repair the text where it was made") from error
    return text


def shown(value: Any) -> str:
    """A value as it is written in Python, shortened, however long or deep it is."""
    return reprlib.repr(value)


def is_null(value: Any) -> bool:
    """Whether a value is None, or NaN, as tables write it."""
    return value is None or (isinstance(value, float) and value != value)


def is_blank(value: Any) -> bool:
    """Whether a value says nothing: None, NaN, empty text, or a list or an object of such values only."""
    return all(map(_is_blank_leaf, leaves(value)))


def leaves(value: Any) -> Iterator[Any]:
    """The values inside lists and objects; without recursion, since records may be nested deeply."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Mapping):
            waiting.extend(one.values())
        elif isinstance(one, (list, tuple)):
            waiting.extend(one)
        else:
            yield one


def _is_blank_leaf(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}")
    return is_null(value)
