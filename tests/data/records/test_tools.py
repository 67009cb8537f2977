"""Tools and calls in records: the forms that are read, what is refused, and what tables make of them."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from torchtune_qwenvl.data import vision_chat_dataset
from torchtune_qwenvl.data.records.messages import MessageParser
from torchtune_qwenvl.transforms.errors import BadSample

ADD = {"name": "add", "parameters": {"type": "object", "properties": {"a": {"default": None}}}}
WHOLE = {"type": "function", "function": ADD}
QUESTION, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
ARGUMENTS = {"b": [1, None], "a": "é"}


def part(arguments: Any, name: str = "add") -> dict[str, Any]:
    return {"type": "tool_call", "content": {"name": name, "arguments": arguments}}


def text(content: str) -> dict[str, Any]:
    return {"type": "text", "content": content}


@pytest.mark.parametrize(
    "tools",
    [
        [WHOLE],
        [ADD],
        [{"function": ADD}],
        [{"type": "function", **ADD}],
        json.dumps([WHOLE]),
        json.dumps([ADD]),
        [json.dumps(WHOLE)],
        json.dumps([json.dumps(ADD)]),
    ],
)
def test_the_forms_of_a_list_of_tools(tools: Any) -> None:
    for record in ({"messages": [QUESTION, ANSWER], "tools": tools}, {"functions": tools}):
        parser = MessageParser(column_map={} if "tools" in record else {"tools": "functions"})
        assert json.dumps(parser.tools(record)) == json.dumps([WHOLE])


def test_keys_of_a_tool_stay_as_they_came() -> None:
    tool = {"strict": None, "function": {"parameters": {}, "name": "f"}, "type": "function"}
    assert json.dumps(MessageParser().tools({"tools": [tool]})) == json.dumps([tool])


@pytest.mark.parametrize("tools", [None, [], "", "[]", " "])
def test_an_empty_list_of_tools_is_none(tools: Any) -> None:
    record = {"messages": [QUESTION, ANSWER], "tools": tools}
    assert MessageParser().tools(record) == [] and len(MessageParser()(record)) == 2


@pytest.mark.parametrize("arguments", [ARGUMENTS, json.dumps(ARGUMENTS, indent=2)])
def test_the_forms_of_calls(arguments: Any) -> None:
    function = {"name": "add", "arguments": arguments}
    for call in (function, {"function": function}, {"type": "function", "id": "1", "function": function}):
        for calls in ([call, call], json.dumps([call, call])):
            turn = {"role": "assistant", "content": None, "tool_calls": calls}
            for column in ("messages", "conversations"):
                _, message = MessageParser()({column: [QUESTION, turn]})
                assert message.content == [text(""), part(arguments), part(arguments)]
                assert not message.masked and not message.ipython


@pytest.mark.parametrize("arguments", [None, "", {}])
def test_a_call_without_arguments(arguments: Any) -> None:
    turn = {**ANSWER, "weight": 0, "tool_calls": [{"name": "now", "arguments": arguments}]}
    _, message = MessageParser()({"messages": [QUESTION, turn]})
    assert message.content == [text("a"), part({}, "now")] and message.masked


@pytest.mark.parametrize("column", ["messages", "conversations"])
@pytest.mark.parametrize("role", ["function_call", "tool_call"])
def test_calls_as_turns_of_their_own(column: str, role: str) -> None:
    """LLaMA-Factory has one turn with one call or several, ms-swift a turn for each."""
    call = {"name": "add", "arguments": ARGUMENTS}
    keys = ("from", "value") if column == "conversations" else ("role", "content")
    turns = [
        *[("user", "q"), (role, json.dumps(call)), ("tool", "1"), (role, json.dumps([call, call]))],
        *[("tool_response", "2"), ("assistant", "Wait."), (role, json.dumps(call)), (role, json.dumps(call))],
    ]
    parsed = MessageParser()({column: [dict(zip(keys, turn, strict=True)) for turn in turns]})
    roles = ["user", "assistant", "ipython", "assistant", "ipython", "assistant"]
    assert [message.role for message in parsed] == roles
    assert [message.content for message in parsed if message.role == "assistant"] == [
        [part(ARGUMENTS)],
        [part(ARGUMENTS)] * 2,
        [text("Wait."), *[part(ARGUMENTS)] * 2],
    ]


BAD_TOOLS = [
    ("[{", "tools: not valid JSON: .*correct or remove it"),
    ({"name": "f"}, r"tools: expected a list of functions, .* got dict \(write \[ \] around it"),
    ("3", "tools: expected a list of functions, .* got int"),
    ([3], r"tools\[0\]: expected an object, got int"),
    ([ADD, "{"], r"tools\[1\]: not valid JSON"),
    ([{"description": "d"}], r"tools\[0\]: a function without a name: .*description.*name it"),
    ([{"type": "function", "function": {"name": ""}}], "a function without a name"),
    ([{"type": "function", "function": None}], "a function without a name: None"),
    ([{"type": "web_search"}], r"tools\[0\]: unknown type 'web_search' \(only functions"),
    ([{"name": "f", "parameters": "{}"}], r"tools\[0\]: parameters: expected an object, .*got str"),
    ([{"name": "f", "parameters": {"a": b"x"}}], r"tools\[0\]: cannot be written as JSON"),
]


@pytest.mark.parametrize(("tools", "message"), BAD_TOOLS, ids=[message[:30] for _, message in BAD_TOOLS])
def test_bad_tools(tools: Any, message: str) -> None:
    with pytest.raises(BadSample, match=message):
        MessageParser().tools({"messages": [QUESTION, ANSWER], "tools": tools})


BAD_CALLS = [
    ([1], r"messages\[1\].tool_calls\[0\]: expected an object, got int"),
    ("[{", r"messages\[1\].tool_calls: not valid JSON"),
    ("3", r"messages\[1\].tool_calls: expected a list of calls, got int"),
    ([{"arguments": {}}], r"tool_calls\[0\]: a function without a name"),
    (
        [{"name": "f", "arguments": "{'a': 1}"}],
        r"tool_calls\[0\]: arguments that are not valid JSON.*correct",
    ),
    ([{"name": "f", "arguments": "[1]"}], r"tool_calls\[0\]: arguments: expected an object, .* got list"),
    ([{"name": "f", "arguments": 3}], "arguments: expected an object, .* got int"),
    ([{"name": "f", "arguments": {"a": b"x"}}], "arguments that are not JSON"),
    ([{"type": "custom", "name": "f"}], "unknown type 'custom'"),
]


@pytest.mark.parametrize(("calls", "message"), BAD_CALLS, ids=[message[:40] for _, message in BAD_CALLS])
def test_bad_calls(calls: Any, message: str) -> None:
    with pytest.raises(BadSample, match=message):
        MessageParser()({"messages": [QUESTION, {**ANSWER, "tool_calls": calls}]})


def test_who_calls_is_the_assistant() -> None:
    turn = {**QUESTION, "tool_calls": [{"name": "f"}]}
    with pytest.raises(BadSample, match=r"messages\[0\]: tool_calls of role 'user' \(only an assistant"):
        MessageParser()({"messages": [turn, ANSWER]})
    with pytest.raises(BadSample, match=r"conversations\[1\].value: not valid JSON"):
        MessageParser()({"conversations": [QUESTION, {"from": "function_call", "value": "f()"}]})


class Recorder:
    """A transform that keeps what it was given."""

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        return {"tokens": [1, 2], "mask": [True, False], "given": sample}


RECORDS = [
    {
        "messages": [QUESTION, {**ANSWER, "tool_calls": [{"name": "add", "arguments": {"a": 1}}]}],
        "tools": [{"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "int"}}}}],
    },
    {
        "messages": [QUESTION, {**ANSWER, "tool_calls": [{"name": "f", "arguments": {"b": "x"}}]}],
        "tools": [{"name": "f", "parameters": {"properties": {"b": {"type": "str", "enum": ["x"]}}}}],
    },
    {"messages": [QUESTION, ANSWER], "tools": None},
]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_file_gives_the_transform_each_records_own_tools(
    kind: str, streaming: bool, tmp_path: Path
) -> None:
    """A table fills the objects of a column up to the same keys."""
    path = tmp_path / f"data.{kind}"
    if kind == "parquet":
        datasets.Dataset.from_list(RECORDS).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    dataset = vision_chat_dataset(Recorder(), source=str(path), streaming=streaming)
    given = [sample["given"] for sample in (dataset if streaming else (dataset[i] for i in range(3)))]
    for sample, record in zip(given, RECORDS, strict=True):
        tools = [{"type": "function", "function": tool} for tool in record["tools"] or []]
        assert sample.get("tools", []) == tools
        calls = [
            part(call["arguments"], call["name"]) for call in record["messages"][1].get("tool_calls", [])
        ]
        assert sample["messages"][1].content == [text("a"), *calls]
    assert "tools" not in given[2]


def test_a_bad_list_of_tools_is_named_with_its_record(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    records = [{"messages": [QUESTION, ANSWER], "tools": tools} for tools in ("[]", "[{}]")]
    path.write_text("\n".join(json.dumps(record) for record in records))
    dataset = vision_chat_dataset(Recorder(), source=str(path))
    with pytest.raises(BadSample, match=r"data.jsonl, sample 1 .*tools\[0\]: a function without a name"):
        dataset[1]
