"""How a chat template writes the list of tools and the calls in an answer.

A call is a part of the answer's content, after its text:

    {"type": "tool_call", "content": {"name": "add", "arguments": {"a": 1}}}

It is rendered as plain text: no tool description or argument can produce a special token.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchtune.data import Message

from torchtune_qwenvl.transforms.errors import BadSample

TOOL_CALL = "tool_call"
Arguments = str | Mapping[str, Any]
Tools = Sequence[Mapping[str, Any]]
# The text before the list is the same in Qwen3-VL's and GLM's templates.
_BEFORE = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
"""


def to_json(value: Any) -> str:
    """JSON as written by the `tojson` filter that transformers provides to chat templates."""
    return json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True)
class ToolFormat:
    """How a chat template writes tools.

    Args:
        after: text after the list of tools, which has one JSON object per line.
        write_call: (name, arguments) of a call -> its text; arguments are an object or its JSON.
        own_turn: True: the list is a system turn of its own, before the conversation's. False: it follows the
            text of the conversation's system turn, after an empty line.
        before: text before the list.
    """

    after: str
    write_call: Callable[[str, Arguments], str]
    own_turn: bool = False
    before: str = _BEFORE

    def write_tools(self, tools: Tools) -> str:
        """The list as text."""
        return self.before + "\n".join(to_json(tool) for tool in tools) + self.after

    def write_calls(self, calls: Sequence[Mapping[str, Any]]) -> str:
        """The calls of one answer, one per line."""
        return "\n".join(self.write_call(call["name"], call["arguments"]) for call in calls)


def calls_of(message: Message) -> list[Mapping[str, Any]]:
    """The calls in an answer, in order."""
    return [part["content"] for part in message.content if part.get("type") == TOOL_CALL]


def parse_arguments(arguments: Arguments, where: str | None = None) -> Mapping[str, Any]:
    """A call's arguments as an object.

    Raises:
        BadSample: invalid JSON, or JSON of something other than an object.
    """
    try:
        parsed = json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError as error:
        raise BadSample(
            f"arguments that are not valid JSON: {error}", where=where, fix="correct it"
        ) from error
    if not isinstance(parsed, Mapping):
        came = type(parsed).__name__
        raise BadSample(
            f"arguments: expected an object, or the JSON of one, got {came}", where=where, fix="name each"
        )
    return parsed
