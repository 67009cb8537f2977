"""Reads a record's tools and calls, in the forms of OpenAI's API, LLaMA-Factory and ms-swift.

    tools       a list, or the JSON of one; of {"type": "function", "function": {"name": "add", ...}}, of the
                function alone, or of the JSON of either
    calls       {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}, or the function
                alone; arguments are an object or the JSON of one

The transform gets tools in the first form; keys and their order are kept.
"""

from collections.abc import Mapping
from typing import Any

from torchtune_qwenvl.data.records.text import from_json, shown, whole_characters
from torchtune_qwenvl.transforms.chat.tools import TOOL_CALL, parse_arguments, to_json
from torchtune_qwenvl.transforms.errors import BadSample

_FUNCTION = "function"


def parse_tools(value: Any) -> list[Mapping[str, Any]]:
    """A record's tools in the form of OpenAI's API. None, an empty list and empty text mean no tools.

    Raises:
        BadSample: broken JSON, anything but functions, or a function without a name.
    """
    tools = from_json(value, "tools") if not _is_blank(value) else []
    if not isinstance(tools, list):
        raise BadSample(
            f"expected a list of functions, or the JSON of one, got {type(tools).__name__}",
            where="tools",
            fix="write [ ] around it, or remove the column",
        )
    return [_parse_tool(tool, f"tools[{number}]") for number, tool in enumerate(tools)]


def parse_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Calls, or the JSON of one or several, as parts of an answer's content, see `transforms/chat/tools.py`.

    Raises:
        BadSample: broken JSON, a call without a name, or arguments that are not an object.
    """
    calls = from_json(value, where)
    if isinstance(calls, Mapping):
        calls = [calls]
    if not isinstance(calls, list):
        raise BadSample(f"expected a list of calls, got {type(calls).__name__}", where=where)
    return [_parse_call(call, f"{where}[{number}]") for number, call in enumerate(calls)]


def tool_calls(turn: Mapping[str, Any], role: str, where: str) -> list[dict[str, Any]]:
    """The calls in a message's `tool_calls`; raises BadSample if the role is not the assistant."""
    calls = turn.get("tool_calls")
    if not calls:
        return []
    if role != "assistant":
        raise BadSample(f"tool_calls of role {role!r}", where=where, fix="only an assistant calls tools")
    return parse_calls(calls, f"{where}.tool_calls")


def _parse_tool(tool: Any, where: str) -> Mapping[str, Any]:
    tool, function = _function(from_json(tool, where), where)
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, Mapping):
        came = type(parameters).__name__
        raise BadSample(f"parameters: expected an object, a JSON schema, got {came}", where=where)
    try:
        whole_characters(to_json(tool), where)
    except (TypeError, RecursionError) as error:
        raise BadSample(f"cannot be written as JSON: {error}", where=where, fix="make it text") from error
    return tool


def _parse_call(call: Any, where: str) -> dict[str, Any]:
    _, function = _function(from_json(call, where), where)
    # Some records have "" for a function without parameters.
    arguments: Any = function.get("arguments")
    arguments = {} if _is_blank(arguments) else arguments
    try:
        whole_characters(to_json(parse_arguments(arguments, where)), where)
        whole_characters(function["name"], where)
    except (TypeError, RecursionError) as error:
        raise BadSample(f"arguments that are not JSON: {error}", where=where, fix="make them text") from error
    return {"type": TOOL_CALL, "content": {"name": function["name"], "arguments": arguments}}


def _function(entry: Any, where: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """(the entry in OpenAI's form, its function)."""
    if not isinstance(entry, Mapping):
        raise BadSample(f"expected an object, got {type(entry).__name__}", where=where)
    kind = entry.get("type", _FUNCTION)
    if kind != _FUNCTION:
        raise BadSample(f"unknown type {shown(kind)}", where=where, fix="only functions can be written")
    if _FUNCTION not in entry:
        entry = {_FUNCTION: {key: value for key, value in entry.items() if key != "type"}}
    function = entry[_FUNCTION]
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(name, str) or not name:
        raise BadSample(f"a function without a name: {shown(function)}", where=where, fix="name it")
    return entry if "type" in entry else {"type": _FUNCTION, **entry}, function


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())
