"""How a chat template writes the list of tools, and the calls in an answer.

A call travels as a part of the answer's content, behind its text:

    {"type": "tool_call", "content": {"name": "add", "arguments": {"a": 1}}}

It is rendered as plain text: nothing in a tool's description or in an argument becomes a special token.
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
# Qwen3-VL's and GLM's templates say the same in front of the list.
_BEFORE = """# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
"""


def to_json(value: Any) -> str:
    """JSON as the filter `tojson` writes it, which transformers gives to chat templates."""
    return json.dumps(value, ensure_ascii=False)


@dataclass(frozen=True)
class ToolFormat:
    """How a chat template writes tools.

    Args:
        behind: text behind the list of tools, which has one JSON object a line.
        write_call: name and arguments of a call, an object or the JSON of one, to its text.
        own_turn: whether the list stands in a system turn of its own, in front of the conversation's; else
            it stands in the conversation's, behind its text and an empty line.
        before: text in front of the list.
    """

    behind: str
    write_call: Callable[[str, Arguments], str]
    own_turn: bool = False
    before: str = _BEFORE

    def write_tools(self, tools: Tools) -> str:
        """The list as text."""
        return self.before + "\n".join(to_json(tool) for tool in tools) + self.behind

    def write_calls(self, calls: Sequence[Mapping[str, Any]]) -> str:
        """The calls of one answer, each on a line of its own."""
        return "\n".join(self.write_call(call["name"], call["arguments"]) for call in calls)


def calls_of(message: Message) -> list[Mapping[str, Any]]:
    """The calls in an answer, in order."""
    return [part["content"] for part in message.content if part.get("type") == TOOL_CALL]


def parse_arguments(arguments: Arguments, where: str | None = None) -> Mapping[str, Any]:
    """A call's arguments as an object.

    Raises:
        BadSample: JSON that is broken or says something else than an object.
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
