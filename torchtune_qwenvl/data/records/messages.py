"""Turns a record into torchtune messages: finds its style, renames its columns, checks what it must have.

A `system` column that is not empty becomes the system message. The `tools` column is read by
`data/records/tools.py`.
"""

from collections.abc import Mapping
from typing import Any

from torchtune.data import Message

from torchtune_qwenvl.data.records.boxes import OBJECTS, BoxReader
from torchtune_qwenvl.data.records.parts import KINDS
from torchtune_qwenvl.data.records.styles import STYLES, as_text, make_message
from torchtune_qwenvl.data.records.tools import parse_tools
from torchtune_qwenvl.transforms.errors import BadSample

COLUMNS = (
    *("messages", "conversations", "question", "answer", "system", "tools", OBJECTS),
    *(column for kind in KINDS.values() for column in kind.columns),
)
_SOUND = ("audio", "audios")


class MessageParser:
    """Turns records into checked messages.

    Args:
        style: one of ``STYLES``, or "auto", which chooses by each record's columns.
        column_map: our column names to the dataset's, for instance ``{"question": "query"}``.
        new_system_prompt: replaces the records' system messages.
        boxes: reads the records' boxes.

    Raises:
        ValueError: an unknown style or column name. Calling the parser raises :class:`BadSample` for a bad
            record.
    """

    def __init__(
        self,
        style: str = "auto",
        column_map: Mapping[str, str] | None = None,
        new_system_prompt: str | None = None,
        boxes: BoxReader | None = None,
    ) -> None:
        if style != "auto" and style not in STYLES:
            raise ValueError(f"style: expected auto, {', '.join(STYLES)}, got {style!r}")
        unknown = sorted(set(column_map or {}) - set(COLUMNS))
        if unknown:
            raise ValueError(
                f"column_map: expected keys among {', '.join(COLUMNS)}, got {', '.join(unknown)}"
            )
        self.style, self.column_map = style, dict(column_map or {})
        self.new_system_prompt = new_system_prompt
        self.boxes = boxes or BoxReader()

    def __call__(self, record: Mapping[str, Any]) -> list[Message]:
        """The record's messages; image and video parts hold what the record names."""
        record = self._rename(record)
        _refuse_sound(record)
        record = self.boxes.complete(record)
        _, parse = STYLES[self.style if self.style != "auto" else _detect(record)]
        messages = parse(record)
        self.boxes.place(record, messages)
        if self.new_system_prompt is not None:
            messages = [m for m in messages if m.role != "system"]
            messages.insert(0, _system(self.new_system_prompt))
        else:
            messages = _with_system(messages, record.get("system"))
        if not any(message.role == "assistant" for message in messages):
            raise BadSample(
                f"expected an assistant turn, got {', '.join(m.role for m in messages)}",
                fix="add the answer to train on, or remove the sample",
            )
        return messages

    def tools(self, record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """The functions that the record's conversation may call, as OpenAI's API takes them."""
        return parse_tools(self._rename(record).get("tools"))

    def _rename(self, record: Mapping[str, Any]) -> Mapping[str, Any]:
        missing = [theirs for theirs in self.column_map.values() if theirs not in record]
        if missing:
            raise BadSample(
                f"column_map expects {', '.join(missing)}, the record has {', '.join(record)}",
                fix="correct column_map or the record",
            )
        return {**record, **{ours: record[theirs] for ours, theirs in self.column_map.items()}}


def _with_system(messages: list[Message], text: Any) -> list[Message]:
    """`messages` with the text of a `system` column in front, if there is one."""
    if text is None or text == "":
        return messages
    if any(message.role == "system" for message in messages):
        raise BadSample("both a system turn and a system column", fix="keep one of them")
    return [_system(as_text(text, "system")), *messages]


def _system(text: str) -> Message:
    return make_message("system", [{"type": "text", "content": text}])


def _refuse_sound(record: Mapping[str, Any]) -> None:
    # If sound were ignored, the model would learn to answer from what it never received.
    for column in _SOUND:
        if record.get(column) not in (None, [], "", "[]"):
            raise BadSample(
                "sound, which these models do not hear",
                where=column,
                fix="leave out what is asked about it, and remove the column",
            )


def _detect(record: Mapping[str, Any]) -> str:
    for style, (columns, _) in STYLES.items():
        if all(record.get(column) is not None for column in columns):
            return style
    raise BadSample(
        f"expected the columns messages, or conversations, or question and answer; got {', '.join(record)}",
        fix="name the columns in column_map",
    )
