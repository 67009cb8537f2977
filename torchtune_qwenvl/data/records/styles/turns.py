"""A list of turns -> torchtune messages: roles, contents with tags or typed parts, weights, calls.

    {"role": "user", "content": "<image>What is it?"}         OpenAI, LLaMA-Factory, ms-swift
    {"from": "human", "value": "<image>What is it?"}          ShareGPT, LLaVA
    {"role": "user", "content": [{"type": "image", "path": "a.jpg"}, {"type": "text", "text": "What is it?"}]}

A list may also be JSON text, or an object of lists, as tables give it: ``{"role": [...], "content": [...]}``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torchtune.data import Message

from torchtune_qwenvl.data.records.columns import Leftovers
from torchtune_qwenvl.data.records.parts import Pools, parse_part
from torchtune_qwenvl.data.records.styles.tags import check_like_tags, places_in, split_tags
from torchtune_qwenvl.data.records.styles.weights import MARKS, answer_weight, check_not_trained
from torchtune_qwenvl.data.records.text import as_text, from_json, is_blank, is_null, shown
from torchtune_qwenvl.data.records.tools import parse_calls, tool_calls
from torchtune_qwenvl.transforms.chat.weights import WeightedMessage, weight_of
from torchtune_qwenvl.transforms.errors import BadSample

ROLES = {
    **{"system": "system", "user": "user", "assistant": "assistant", "human": "user", "gpt": "assistant"},
    **dict.fromkeys(("tool", "ipython", "tool_response", "observation"), "ipython"),
}
# The text of these roles is JSON: one call or a list of calls.
CALLERS = ("tool_call", "function_call")
_KEYS = frozenset({"role", "from", "content", "value", "tool_calls", "reasoning_content", *MARKS})


@dataclass(frozen=True)
class Reading:
    """What the readers of a record share.

    Attributes:
        pools: the record's images and videos that have no place yet.
        leftovers: collects what is not read.
    """

    pools: Pools
    leftovers: Leftovers


def read_turns(
    value: Any, column: str, reading: Reading, weight: float | None = None, stripped: bool = False
) -> list[Message]:
    """The messages of a column of turns.

    Args:
        value: the turns.
        column: their column, for messages.
        reading: the record's images, and what is not read.
        weight: of answers that do not say their own; None: 1.
        stripped: strip the text of questions without tags too, as the Qwen team's trainer does.
    """
    messages: list[Message] = []
    for number, turn in enumerate(as_turns(value, column)):
        _read_turn(messages, turn, f"{column}[{number}]", column, reading, weight, stripped)
    return messages


def _read_turn(
    messages: list[Message],
    turn: Mapping[str, Any],
    where: str,
    column: str,
    reading: Reading,
    default: float | None,
    stripped: bool,
) -> None:
    speaker = _one_of(turn, ("role", "from"), where)
    # In a turn that lacks both, the style's own name is missed.
    name = "value" if "value" in turn or (column == "conversations" and "content" not in turn) else "content"
    content = _one_of(turn, ("content", "value"), where)
    reading.leftovers.check(turn, _KEYS, "the key of a turn", where)
    given = answer_weight(turn, where)
    weight = given if given is not None else 1.0 if default is None else default
    if not is_blank(turn.get("reasoning_content")):
        fix = "write it into content, as <think>…</think> before the answer"
        raise BadSample("reasoning_content, which is not read", where=where, fix=fix)
    if isinstance(speaker, str) and speaker in CALLERS:
        return add_calls(messages, parse_calls(content, f"{where}.{name}"), weight)
    role = _role(speaker, where)
    if role != "assistant":
        check_not_trained(given, role, where)
    calls = tool_calls(turn, role, where)
    content = "" if calls and content is None else content
    parts = _parts(content, role, reading, f"{where}.{name}", stripped)
    messages.append(make_message(role, [*parts, *calls], weight))


def _parts(content: Any, role: str, reading: Reading, where: str, stripped: bool) -> list[dict[str, Any]]:
    if isinstance(content, (list, tuple)):
        return [
            parse_part(part, reading.pools, f"{where}[{i}]", reading.leftovers)
            for i, part in enumerate(content)
        ]
    text, turn = as_text(content, where), where.rpartition(".")[0]
    if role not in ("user", "ipython"):
        return [{"type": "text", "content": text}]
    if stripped and role == "user":
        check_like_tags(text, reading.pools, turn)
        return split_tags(text, reading.pools, turn)
    return places_in(text, reading.pools, turn)


def as_turns(value: Any, column: str) -> Sequence[Mapping[str, Any]]:
    """A column's turns as a list of objects.

    Raises:
        BadSample: something else, or no turns.
    """
    turns = _from_json_text(value, column)
    if isinstance(turns, Mapping):
        turns = _from_lists(turns, column)
    if is_null(turns):
        fix = "write them, or remove the sample"
        raise BadSample("expected a list of turns, got null", where=column, fix=fix)
    if not isinstance(turns, (list, tuple)):
        raise BadSample(f"expected a list of turns, got {type(value).__name__}", where=column)
    if not turns:
        raise BadSample("an empty conversation", where=column, fix="add turns or remove the sample")
    for number, turn in enumerate(turns):
        if not isinstance(turn, Mapping):
            raise BadSample(f"expected an object, got {type(turn).__name__}", where=f"{column}[{number}]")
    return turns


def _from_json_text(value: Any, column: str) -> Any:
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        return from_json(value, column)
    return value


def _from_lists(turns: Mapping[str, Any], column: str) -> list[dict[str, Any]]:
    """``{"role": [a, b], "content": [c, d]}`` -> one object for each turn."""
    lists = {key: list(values) for key, values in turns.items() if isinstance(values, (list, tuple))}
    lengths = {len(values) for values in lists.values()}
    if not turns or len(lists) < len(turns) or len(lengths) > 1:
        raise BadSample(
            "expected a list of turns, got an object whose values are not lists of one length",
            where=column,
            fix="write [ ] around a single turn",
        )
    return [dict(zip(lists, turn, strict=True)) for turn in zip(*lists.values(), strict=True)]


def _one_of(turn: Mapping[str, Any], names: tuple[str, str], where: str) -> Any:
    given = [name for name in names if turn.get(name) is not None]
    if len(given) > 1:
        raise BadSample(f"a turn with both {' and '.join(given)}", where=where, fix="keep one of them")
    return turn[given[0]] if given else None


def _role(name: Any, where: str) -> str:
    if not isinstance(name, str) or name not in ROLES:
        expected = ", ".join((*ROLES, *CALLERS))
        raise BadSample(
            f"unknown role {shown(name)}", where=where, fix=f"expected one of {expected}: rename it"
        )
    return ROLES[name]


def add_calls(messages: list[Message], calls: list[dict[str, Any]], weight: float = 1.0) -> None:
    """Append calls to the turn of the answer or calls before them, or begin a turn with them."""
    new = make_message("assistant", calls, weight)
    if messages and messages[-1].role == "assistant" and weight_of(messages[-1]) == weight_of(new):
        messages[-1].content.extend(calls)
    else:
        messages.append(new)


def make_message(role: str, content: list[dict[str, Any]], weight: float = 1.0) -> Message:
    """A message that is trained on if it is an assistant's, with the weight of its tokens in the loss."""
    if role == "assistant" and weight not in (0.0, 1.0):
        return WeightedMessage(content, weight)
    # torchtune's convention: a tool's answer does not end the turn.
    return Message(role, content, masked=not weight or role != "assistant", eot=role != "ipython")
