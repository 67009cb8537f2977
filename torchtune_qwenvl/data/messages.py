"""One record of a dataset -> torchtune messages, for three styles of records.

    messages        {"messages": [{"role": "user", "content": [
                        {"type": "image", "path": "a.jpg"}, {"type": "text", "text": "What is it?"}]}, ...]}
    conversations   {"image": "a.jpg", "conversations": [
                        {"from": "human", "value": "<image>What is it?"}, ...]}
    qa              {"image": "a.jpg", "question": "What is it?", "answer": "A cat."}

Videos stand like images: `{"type": "video", "path": "a.mp4"}`, the columns `video` and `videos`, `<video>`.
Only "conversations" reads `<image>` and `<video>` in a user's text as places of images and videos (and strips
the text around them, as the Qwen team's trainer does); in the other two text is text. Both stay what the
record names, a path or bytes; `data/images.py` finds them. A filled `system` column is the system message.
Tools and their calls: `data/tools.py`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from torchtune.data import Message

from torchtune_qwenvl.data.columns import refuse_columns
from torchtune_qwenvl.data.parts import KINDS, Pools, open_pools, parse_part
from torchtune_qwenvl.data.tools import parse_calls, parse_tools, tool_calls
from torchtune_qwenvl.transforms.errors import BadSample

_TAGS = {kind.tag: kind for kind in KINDS.values()}
_TAG = re.compile(f"({'|'.join(_TAGS)})")

ROLES = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "ipython",
    "ipython": "ipython",
    "tool_response": "ipython",
}
# Their text is JSON: one call or a list of calls.
CALLERS = ("tool_call", "function_call")
SPEAKERS = {**ROLES, "human": "user", "gpt": "assistant", "observation": "ipython"}


# How ms-swift's records, with tags in `messages`, are read.
_WITH_TAGS = "dataset.style=conversations dataset.column_map.conversations=messages"


def messages_style(record: Mapping[str, Any]) -> list[Message]:
    """OpenAI / HF records: ``messages`` with ``role`` and ``content`` (a string or a list of typed parts).

    An image or video part without a source of its own takes the next one of the ``images`` (or ``image``),
    ``videos`` (or ``video``) column. An assistant message with ``weight: 0`` is not trained on.
    """
    pools = open_pools(record)
    messages: list[Message] = []
    for number, turn in enumerate(_turns(record, "messages")):
        where = f"messages[{number}]"
        masked, content = turn.get("weight") == 0, turn.get("content")
        if turn.get("role") in CALLERS:
            _add_calls(messages, parse_calls(content, f"{where}.content"), masked)
            continue
        role = _role(turn.get("role"), ROLES, where)
        calls = tool_calls(turn, role, where)
        parts = _parts("" if calls and content is None else content, pools, where)
        messages.append(_message(role, [*parts, *calls], masked=masked))
    for kind, pool in pools.items():
        fix = f"add a part of type {kind} for each, or remove them"
        if any(pool.kind.tag in message.text_content for message in messages):
            fix = f"{pool.kind.tag} is text here; as a place for one it is read with {_WITH_TAGS}"
        pool.check_empty(f"{kind} parts", fix)
    return messages


def conversations_style(record: Mapping[str, Any]) -> list[Message]:
    """LLaVA / ShareGPT records: ``conversations`` with ``from`` and ``value``, ``<image>``, ``<video>`` tags.

    ``role`` and ``content`` are read in the place of ``from`` and ``value`` too. Tags count in user turns
    only.
    """
    pools = open_pools(record)
    messages: list[Message] = []
    for number, turn in enumerate(_turns(record, "conversations")):
        where = f"conversations[{number}]"
        speaker, value = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
        if speaker in CALLERS:
            _add_calls(messages, parse_calls(value, f"{where}.value"))
            continue
        role = _role(speaker, SPEAKERS, where)
        calls = tool_calls(turn, role, where)
        text = "" if calls and value is None else _text(value, f"{where}.value")
        parts = split_tags(text, pools, where) if role == "user" else [{"type": "text", "content": text}]
        messages.append(_message(role, [*parts, *calls]))
    for pool in pools.values():
        tag = pool.kind.tag
        pool.check_empty(f"{tag} tags", f"put one {tag} into a user turn for each, or remove them")
    return messages


def qa_style(record: Mapping[str, Any]) -> list[Message]:
    """Columns ``question``, ``answer`` and, where there are some, ``image(s)`` and ``video(s)``.

    Images come first, then videos, then the question.
    """
    media = [part for pool in open_pools(record).values() for part in pool.take_all()]
    question = {"type": "text", "content": _text(record.get("question"), "question")}
    answer = {"type": "text", "content": _text(record.get("answer"), "answer")}
    return [_message("user", [*media, question]), _message("assistant", [answer])]


# Tried in this order: the columns that tell a style, and its parser.
STYLES: dict[str, tuple[tuple[str, ...], Callable[[Mapping[str, Any]], list[Message]]]] = {
    "messages": (("messages",), messages_style),
    "conversations": (("conversations",), conversations_style),
    "qa": (("question", "answer"), qa_style),
}
COLUMNS = (
    *("messages", "conversations", "question", "answer", "system", "tools"),
    *(column for kind in KINDS.values() for column in kind.columns),
)


class MessageParser:
    """Turns records into checked messages.

    Args:
        style: one of ``STYLES``, or "auto": each record by its columns.
        column_map: our column names to the dataset's, for instance ``{"question": "query"}``.
        new_system_prompt: replaces the records' system messages.

    Raises:
        ValueError: an unknown style or column name. Calling it raises :class:`BadSample` for a bad record.
    """

    def __init__(
        self,
        style: str = "auto",
        column_map: Mapping[str, str] | None = None,
        new_system_prompt: str | None = None,
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

    def __call__(self, record: Mapping[str, Any]) -> list[Message]:
        """The record's messages; image and video parts hold what the record names."""
        record = self._rename(record)
        refuse_columns(record)
        _, parse = STYLES[self.style if self.style != "auto" else _detect(record)]
        messages = parse(record)
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


def split_tags(text: str, pools: Pools, where: str) -> list[dict[str, Any]]:
    """Split a user's text at its ``<image>`` and ``<video>`` tags and put the next ones in their places.

    Example: ``"<image>\\nWhat is it? "`` with the image a.jpg gives image a.jpg, then text "What is it?".

    Args:
        text: the user's text.
        pools: the record's images and videos, in order.
        where: the turn, for messages.

    Returns:
        Content parts, text stripped and never empty; one empty text part where nothing else is left.
    """
    parts: list[dict[str, Any]] = []
    for piece in _TAG.split(text):
        if piece in _TAGS:
            kind = _TAGS[piece].name
            fix = f"add the missing {kind}s or remove the tags"
            parts.append(pools[kind].take(where, f"{piece} tags", fix))
        elif piece.strip():
            parts.append({"type": "text", "content": piece.strip()})
    return parts or [{"type": "text", "content": ""}]


def _add_calls(messages: list[Message], calls: list[dict[str, Any]], masked: bool = False) -> None:
    """Behind an answer, or behind calls, they belong to its turn."""
    if messages and messages[-1].role == "assistant" and messages[-1].masked == masked:
        messages[-1].content.extend(calls)
    else:
        messages.append(_message("assistant", calls, masked))


def _with_system(messages: list[Message], text: Any) -> list[Message]:
    """`messages` behind the text of a `system` column, where it has one."""
    if text is None or text == "":
        return messages
    if any(message.role == "system" for message in messages):
        raise BadSample("a system turn, and a system column beside it", fix="keep one of them")
    return [_system(_text(text, "system")), *messages]


def _system(text: str) -> Message:
    return _message("system", [{"type": "text", "content": text}])


def _detect(record: Mapping[str, Any]) -> str:
    for style, (columns, _) in STYLES.items():
        if all(record.get(column) is not None for column in columns):
            return style
    raise BadSample(
        f"expected the columns messages, or conversations, or question and answer; got {', '.join(record)}",
        fix="name the columns in column_map",
    )


def _turns(record: Mapping[str, Any], column: str) -> list[Mapping[str, Any]]:
    turns = record.get(column)
    if not isinstance(turns, list):
        raise BadSample(f"expected a list of turns, got {type(turns).__name__}", where=column)
    if not turns:
        raise BadSample("an empty conversation", where=column, fix="add turns or remove the sample")
    for number, turn in enumerate(turns):
        if not isinstance(turn, Mapping):
            raise BadSample(f"expected an object, got {type(turn).__name__}", where=f"{column}[{number}]")
    return turns


def _role(name: Any, roles: Mapping[str, str], where: str) -> str:
    if not isinstance(name, str) or name not in roles:
        raise BadSample(
            f"unknown role {name!r}", where=where, fix=f"expected one of {', '.join(roles)}: rename it"
        )
    return roles[name]


def _parts(content: Any, pools: Pools, where: str) -> list[dict[str, Any]]:
    if isinstance(content, list):
        return [parse_part(part, pools, f"{where}.content[{i}]") for i, part in enumerate(content)]
    return [{"type": "text", "content": _text(content, f"{where}.content")}]


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise BadSample(f"expected text, got {type(value).__name__}", where=where, fix="make it a string")
    return value


def _message(role: str, content: list[dict[str, Any]], masked: bool = False) -> Message:
    # torchtune's convention: a tool's answer does not hand over the turn.
    return Message(role, content, masked=masked or role != "assistant", eot=role != "ipython")
