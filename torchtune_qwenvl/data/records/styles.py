"""The three styles of records. Each is read by a function from a record to torchtune messages.

    messages        {"messages": [{"role": "user", "content": [
                        {"type": "image", "path": "a.jpg"}, {"type": "text", "text": "What is it?"}]}, ...]}
    conversations   {"image": "a.jpg", "conversations": [
                        {"from": "human", "value": "<image>What is it?"}, ...]}
    qa              {"image": "a.jpg", "question": "What is it?", "answer": "A cat."}

Videos work like images: `{"type": "video", "path": "a.mp4"}`, the columns `video` and `videos`, `<video>`.
Only "conversations" reads `<image>` and `<video>` in a user's text as places of images and videos. It strips
the text around them, as the Qwen team's trainer does. The other two styles leave text as it is. A part holds
what the record names, a path or bytes; `data/records/media.py` finds the file. `data/records/tools.py` reads
tools and calls.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from torchtune.data import Message

from torchtune_qwenvl.data.records.parts import KINDS, Pools, open_pools, parse_part
from torchtune_qwenvl.data.records.tools import parse_calls, tool_calls
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
# The text of these roles is JSON: one call or a list of calls.
CALLERS = ("tool_call", "function_call")
SPEAKERS = {**ROLES, "human": "user", "gpt": "assistant", "observation": "ipython"}
# The options that read ms-swift's records, which have tags in `messages`.
_WITH_TAGS = "dataset.style=conversations dataset.column_map.conversations=messages"


def messages_style(record: Mapping[str, Any]) -> list[Message]:
    """OpenAI / HF records: ``messages`` with ``role`` and ``content`` (a string or a list of typed parts).

    An image or video part that names no source takes the next one of the ``images`` (or ``image``) or
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
        if turn.get("reasoning_content"):
            raise BadSample(
                "reasoning_content, which is not read",
                where=where,
                fix="write it into content, as <think>…</think> before the answer",
            )
        calls = tool_calls(turn, role, where)
        parts = _parts("" if calls and content is None else content, pools, where)
        messages.append(make_message(role, [*parts, *calls], masked=masked))
    for kind, pool in pools.items():
        fix = f"add a part of type {kind} for each, or remove them"
        if any(pool.kind.tag in message.text_content for message in messages):
            fix = f"{pool.kind.tag} is plain text in this style; to read it as a tag, set {_WITH_TAGS}"
        pool.check_empty(f"{kind} parts", fix)
    return messages


def conversations_style(record: Mapping[str, Any]) -> list[Message]:
    """LLaVA / ShareGPT records: ``conversations`` with ``from`` and ``value``, ``<image>``, ``<video>`` tags.

    ``role`` and ``content`` may be used instead of ``from`` and ``value``. Tags are read in user turns only.
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
        text = "" if calls and value is None else as_text(value, f"{where}.value")
        parts = split_tags(text, pools, where) if role == "user" else [{"type": "text", "content": text}]
        messages.append(make_message(role, [*parts, *calls]))
    for pool in pools.values():
        tag = pool.kind.tag
        pool.check_empty(f"{tag} tags", f"put one {tag} into a user turn for each, or remove them")
    return messages


def qa_style(record: Mapping[str, Any]) -> list[Message]:
    """Columns ``question`` and ``answer``, and optionally ``image(s)`` and ``video(s)``.

    Images come first, then videos, then the question.
    """
    media = [part for pool in open_pools(record).values() for part in pool.take_all()]
    question = {"type": "text", "content": as_text(record.get("question"), "question")}
    answer = {"type": "text", "content": as_text(record.get("answer"), "answer")}
    return [make_message("user", [*media, question]), make_message("assistant", [answer])]


# Tried in this order: a style's columns, and its parser.
STYLES: dict[str, tuple[tuple[str, ...], Callable[[Mapping[str, Any]], list[Message]]]] = {
    "messages": (("messages",), messages_style),
    "conversations": (("conversations",), conversations_style),
    "qa": (("question", "answer"), qa_style),
}


def split_tags(text: str, pools: Pools, where: str) -> list[dict[str, Any]]:
    """Split a user's text at its ``<image>`` and ``<video>`` tags; the next image or video replaces each.

    Example: ``"<image>\\nWhat is it? "`` with the image a.jpg gives image a.jpg, then text "What is it?".

    Args:
        text: the user's text.
        pools: the record's images and videos, in order.
        where: the turn, for messages.

    Returns:
        Content parts. Text is stripped; empty text is left out, unless it would be the only part.
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
    """Append calls to the turn of the answer or calls before them, or begin a turn with them."""
    if messages and messages[-1].role == "assistant" and messages[-1].masked == masked:
        messages[-1].content.extend(calls)
    else:
        messages.append(make_message("assistant", calls, masked))


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
    return [{"type": "text", "content": as_text(content, f"{where}.content")}]


def as_text(value: Any, where: str) -> str:
    """Return `value` if it is text; raise :class:`BadSample` if not."""
    if not isinstance(value, str):
        raise BadSample(f"expected text, got {type(value).__name__}", where=where, fix="make it a string")
    return value


def make_message(role: str, content: list[dict[str, Any]], masked: bool = False) -> Message:
    """A message that is trained on if it is an assistant's and not `masked`."""
    # torchtune's convention: a tool's answer does not end the turn.
    return Message(role, content, masked=masked or role != "assistant", eot=role != "ipython")
