"""The table of styles, and which of them a record has."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torchtune.data import Message

from torchtune_qwenvl.data.records.styles.flat import read_alpaca, read_completion, read_qa, read_query
from torchtune_qwenvl.data.records.styles.turns import Reading, read_turns
from torchtune_qwenvl.data.records.text import is_blank, is_null
from torchtune_qwenvl.transforms.errors import BadSample


@dataclass(frozen=True)
class Style:
    """One way to write a conversation.

    Attributes:
        columns: a record of this style has all of them.
        more: columns that it may have.
        read: (record, reading, weight of answers that do not say their own) -> messages.
        places: what an image without a place would need, for messages.
    """

    columns: tuple[str, ...]
    read: Callable[[Mapping[str, Any], Reading, float | None], list[Message]]
    more: tuple[str, ...] = ()
    places: str = "{tag} tags"


def _read_column(
    record: Mapping[str, Any], reading: Reading, weight: float | None, *, column: str, stripped: bool
) -> list[Message]:
    return read_turns(record[column], column, reading, weight, stripped)


STYLES: dict[str, Style] = {
    "messages": Style(
        ("messages",),
        partial(_read_column, column="messages", stripped=False),
        places="{name} parts or {tag} tags",
    ),
    "conversations": Style(("conversations",), partial(_read_column, column="conversations", stripped=True)),
    "qa": Style(("question", "answer"), read_qa),
    "query_response": Style(("query", "response"), read_query, ("history",)),
    "alpaca": Style(("instruction", "output"), read_alpaca, ("input", "history")),
    "prompt_completion": Style(
        ("prompt", "completion"), read_completion, places="{name} parts or {tag} tags"
    ),
}
COLUMNS = tuple(dict.fromkeys(name for style in STYLES.values() for name in (*style.columns, *style.more)))


def style_of(record: Mapping[str, Any]) -> str:
    """The style whose columns a record has.

    Raises:
        BadSample: none, or several.
    """
    found = [name for name, style in STYLES.items() if _has(record, style)]
    if len(found) > 1:
        # A table that joins files of several styles has the columns of all, empty where they do not apply.
        filled = [n for n in found if not all(is_blank(record[column]) for column in STYLES[n].columns)]
        found = filled or found[:1]
    if len(found) == 1:
        return found[0]
    if not found:
        _refuse_nulls(record)
        known = ", or ".join(" and ".join(style.columns) for style in STYLES.values())
        raise BadSample(
            f"expected the columns {known}; got {', '.join(map(str, record)):.300}",
            fix="name the columns in column_map",
        )
    raise BadSample(
        f"the columns of {len(found)} styles, {' and '.join(found)}",
        fix="remove those of all but one, or name them in dataset.ignore_columns",
    )


def _has(record: Mapping[str, Any], style: Style) -> bool:
    return not any(is_null(record.get(column)) for column in style.columns)


def _refuse_nulls(record: Mapping[str, Any]) -> None:
    """Raise a BadSample if a record has the columns of a style, some with null."""
    there = [style.columns for style in STYLES.values() if all(name in record for name in style.columns)]
    if there:
        # Of several styles the fullest is meant; the others are there for other records of the table.
        meant = max(there, key=lambda columns: sum(not is_null(record[name]) for name in columns))
        nulls = [name for name in meant if is_null(record[name])]
        names, verb = " and ".join(nulls), "is" if len(nulls) == 1 else "are"
        raise BadSample(f"{names} {verb} null", fix=f"write the {names}, or remove the sample")
