"""Turns a record into torchtune messages: finds its style, renames its columns, checks what it must have.

A `system` column that is not empty becomes the system message. The `tools` column is read by
`data/records/tools.py`. Columns that nobody reads are dealt with by `data/records/columns.py`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torchtune.data import Message

from torchtune_qwenvl.data.records.boxes import OBJECTS, BoxReader
from torchtune_qwenvl.data.records.columns import Leftovers
from torchtune_qwenvl.data.records.parts import KINDS, open_pools
from torchtune_qwenvl.data.records.styles import table
from torchtune_qwenvl.data.records.styles.oddities import note_oddities
from torchtune_qwenvl.data.records.styles.table import STYLES, Style, style_of
from torchtune_qwenvl.data.records.styles.turns import Reading, make_message
from torchtune_qwenvl.data.records.styles.weights import MARKS, TRAIN_ON, answer_weight
from torchtune_qwenvl.data.records.text import JsonObject, as_text, is_blank
from torchtune_qwenvl.data.records.tools import parse_tools
from torchtune_qwenvl.transforms.chat.chat_format import has_media
from torchtune_qwenvl.transforms.errors import BadSample

_MEDIA_COLUMNS = tuple(column for kind in KINDS.values() for column in kind.columns)
COLUMNS = (*table.COLUMNS, "system", "tools", OBJECTS, *_MEDIA_COLUMNS)
_SOUND = ("audio", "audios")


@dataclass(frozen=True)
class Conversation:
    """What a record says.

    Attributes:
        messages: image and video parts hold what the record names.
        tools: the functions that may be called, as OpenAI's API takes them.
        notes: what is odd about the record, and which columns are not read.
    """

    messages: list[Message]
    tools: list[Mapping[str, Any]]
    notes: tuple[str, ...]


class MessageParser:
    """Turns records into checked messages.

    Args:
        style: one of ``STYLES``, or "auto", which chooses by each record's columns.
        column_map: our column names to the dataset's, for instance ``{"question": "query"}``.
        new_system_prompt: replaces the records' system messages.
        train_on: "all" answers, or only the "last" one of each record.
        ignore_columns: names of columns that are ignored without a word; ``*`` stands for any characters in
            names of columns that are not read anyway.
        boxes: reads the records' boxes.

    Raises:
        ValueError: an unknown style, column name or `train_on`. Calling the parser raises :class:`BadSample`
            for a bad record.
    """

    def __init__(
        self,
        style: str = "auto",
        column_map: Mapping[str, str] | None = None,
        new_system_prompt: str | None = None,
        train_on: str = "all",
        ignore_columns: Iterable[str] | None = None,
        boxes: BoxReader | None = None,
    ) -> None:
        if style != "auto" and style not in STYLES:
            raise ValueError(f"style: expected auto, {', '.join(STYLES)}, got {style!r}")
        if train_on not in TRAIN_ON:
            raise ValueError(f"train_on: expected one of {', '.join(TRAIN_ON)}, got {train_on!r}")
        if unknown := sorted(set(column_map or {}) - set(COLUMNS)):
            raise ValueError(
                f"column_map: expected keys among {', '.join(COLUMNS)}, got {', '.join(unknown)}"
            )
        self.style, self.column_map, self.train_on = style, dict(column_map or {}), train_on
        self.new_system_prompt = new_system_prompt
        self.ignored, self.boxes = _names(ignore_columns), boxes or BoxReader()

    def __call__(self, record: Mapping[str, Any]) -> list[Message]:
        """The record's messages; image and video parts hold what the record names."""
        return self.read(record).messages

    def tools(self, record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """The functions that the record's conversation may call, as OpenAI's API takes them."""
        return parse_tools(self._rename(record).get("tools"))

    def read(
        self, record: Mapping[str, Any], is_file: Callable[[str], bool] = lambda text: False
    ) -> Conversation:
        """All that the record says.

        Args:
            record: its columns.
            is_file: whether a text names a file that exists, to find images in columns that are not read.

        Raises:
            BadSample: something in it cannot be read, or must not be ignored.
        """
        leftovers = Leftovers(is_file, self.ignored)
        _note_repeated(record, leftovers)
        # Only its own name ignores a column that is read: `image*` may be meant for image_id.
        record = {key: value for key, value in record.items() if key not in self.ignored}
        record = self._rename(record)
        _refuse_sound(record)
        record = dict(self.boxes.complete(record))
        name = self.style if self.style != "auto" else style_of(record)
        messages = _read(record, name, leftovers)
        self.boxes.place(record, messages)
        messages = self._system(messages, record.get("system"))
        if not any(message.role == "assistant" for message in messages):
            raise BadSample(
                f"expected an assistant turn, got {', '.join(m.role for m in messages)}",
                fix="add the answer to train on, or remove the sample",
            )
        note_oddities(messages, leftovers)
        if self.train_on == "last":
            messages = _last_only(messages)
        return Conversation(messages, parse_tools(record.get("tools")), tuple(leftovers.notes))

    def _rename(self, record: Mapping[str, Any]) -> dict[str, Any]:
        missing = [theirs for theirs in self.column_map.values() if theirs not in record]
        if missing:
            raise BadSample(
                f"column_map expects {', '.join(missing)}, the record has {', '.join(map(str, record)):.300}",
                fix="correct column_map or the record",
            )
        renamed = {ours: record[theirs] for ours, theirs in self.column_map.items()}
        rest = {key: value for key, value in record.items() if key not in self.column_map.values()}
        if twice := [key for key in rest if key in renamed and not is_blank(rest[key])]:
            raise BadSample(
                f"column_map gives the name {twice[0]} to {self.column_map[twice[0]]}, but there is a column "
                f"{twice[0]} too",
                fix="name it in dataset.ignore_columns, or correct column_map",
            )
        return {**rest, **renamed}

    def _system(self, messages: list[Message], text: Any) -> list[Message]:
        if self.new_system_prompt is not None:
            rest = [message for message in messages if message.role != "system"]
            return [_system_message(self.new_system_prompt), *rest]
        return _with_system(messages, text)


def _read(record: Mapping[str, Any], name: str, leftovers: Leftovers) -> list[Message]:
    style = STYLES[name]
    if missing := [column for column in style.columns if column not in record]:
        raise BadSample(f"expected the columns {', '.join(style.columns)}; {', '.join(missing)} is missing")
    pools = open_pools(record, leftovers)
    read = {*style.columns, *style.more, "system", "tools", OBJECTS, *_MEDIA_COLUMNS, *MARKS}
    # Before the conversation is read, since a column that is not read explains why a tag has no image.
    leftovers.check(record, read, "the column")
    messages = style.read(record, Reading(pools, leftovers), answer_weight(record, "the record"))
    _check_placed(style, pools.values())
    if not any(has_media(message) for message in messages):
        leftovers.check(record, read, "the column", media=False)
    return messages


def _check_placed(style: Style, pools: Iterable[Any]) -> None:
    for pool in pools:
        tag, name = pool.kind.tag, pool.kind.name
        fix = f"put one {tag} into a question, or add a part of type {name}, for each, or remove them"
        pool.check_empty(style.places.format(tag=tag, name=name), fix)


def _last_only(messages: list[Message]) -> list[Message]:
    """The messages, of which only the last answer is trained on."""
    last = max(number for number, message in enumerate(messages) if message.role == "assistant")
    return [
        make_message(message.role, message.content, 0.0)
        if message.role == "assistant" and n != last
        else message
        for n, message in enumerate(messages)
    ]


def _note_repeated(record: Mapping[str, Any], leftovers: Leftovers) -> None:
    for key in record.repeated if isinstance(record, JsonObject) else ():
        leftovers.note(f"an object has the key {key!r:.60} more than once; its last value is used")


def _with_system(messages: list[Message], text: Any) -> list[Message]:
    """`messages` with the text of a `system` column in front, if there is one."""
    if text == "" or (not isinstance(text, str) and is_blank(text)):
        return messages
    if any(message.role == "system" for message in messages):
        raise BadSample("both a system turn and a system column", fix="keep one of them")
    return [_system_message(as_text(text, "system")), *messages]


def _system_message(text: str) -> Message:
    return make_message("system", [{"type": "text", "content": text}])


def _refuse_sound(record: Mapping[str, Any]) -> None:
    # If sound were ignored, the model would learn to answer from what it never received.
    for column in _SOUND:
        if not is_blank(record.get(column)):
            raise BadSample(
                "sound, which these models do not hear",
                where=column,
                fix="leave out what is asked about it, and remove the column",
            )


def _names(ignore_columns: Iterable[str] | None) -> tuple[str, ...]:
    names = (ignore_columns,) if isinstance(ignore_columns, str) else tuple(ignore_columns or ())
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise ValueError(f"ignore_columns: expected names of columns, got {wrong[0]!r}")
    return names
