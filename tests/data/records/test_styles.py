"""The records of other trainers, found by themselves; tags in all of them; what two styles at once are."""

import json
from typing import Any

import datasets
import pytest
from record_sets.plain import plain

from torchtune_qwenvl.data.records.messages import MessageParser
from torchtune_qwenvl.data.records.sources import open_source
from torchtune_qwenvl.transforms.errors import BadSample

A, B = ("image", "a.png"), ("image", "b.png")


def parse(record: dict[str, Any]) -> list[tuple[str, list[Any]]]:
    return plain(MessageParser()(record))


def asks(question: Any, answer: Any = "x") -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def says(question: Any, answer: Any = "x") -> list[dict[str, Any]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


ONE = [("user", [A, "What?"]), ("assistant", ["x"])]
SAME = {
    "LLaVA": {"image": "a.png", "conversations": says("<image>\nWhat?")},
    "LLaMA-Factory, ms-swift": {"messages": asks("<image>What?"), "images": ["a.png"]},
    "LLaMA-Factory v1": {
        "messages": asks(
            [{"type": "image_url", "value": "a.png"}, {"type": "text", "value": "What?"}],
            [{"type": "text", "value": "x"}],
        )
    },
    "Alpaca": {"instruction": "<image>What?", "input": "", "output": "x", "images": ["a.png"]},
    "ms-swift's older files": {"query": "<image>What?", "response": "x", "images": ["a.png"]},
    "TRL": {
        "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}],
        "completion": [{"role": "assistant", "content": [{"type": "text", "text": "x"}]}],
        "images": ["a.png"],
    },
    "TRL, text": {"prompt": "<image>What?", "completion": "x", "image": "a.png"},
    "question and answer": {"question": "<image>What?", "answer": "x", "image": "a.png"},
    "image in front": {"question": "What?", "answer": "x", "image": "a.png"},
    "JSON text": {"conversations": json.dumps(says("<image>What?")), "images": ["a.png"]},
    "JSON text of messages": {"messages": json.dumps(asks("<image>What?")), "images": ["a.png"]},
    "lists in a dict": {
        "messages": {"role": ["user", "assistant"], "content": ["<image>What?", "x"]},
        "image": "a.png",
    },
    "from and value": {
        "conversations": {"from": ["human", "gpt"], "value": ["<image>What?", "x"]},
        "image": "a.png",
    },
}


@pytest.mark.parametrize("name", SAME)
def test_one_conversation_in_the_words_of_every_trainer(name: str) -> None:
    assert parse(SAME[name]) == ONE


def test_exchanges_before_the_question() -> None:
    history = [["q0", "a0"], ["<image>q1", "a1"]]
    before = [("user", ["q0"]), ("assistant", ["a0"]), ("user", [A, "q1"]), ("assistant", ["a1"])]
    query = {"query": "and now?", "response": "x", "history": history, "images": ["a.png"]}
    assert parse(query) == [*before, ("user", ["and now?"]), ("assistant", ["x"])]
    alpaca = {"instruction": "and", "input": "now?", "output": "x", "history": json.dumps(history)}
    expected = [*before, ("user", ["and\nnow?"]), ("assistant", ["x"])]
    assert parse({**alpaca, "images": ["a.png"], "system": "S"}) == [("system", ["S"]), *expected]
    # Without a tag, images stand before everything else, as ms-swift has them.
    assert parse({**query, "history": [["q0", "a0"]]})[0] == ("user", [A, "q0"])


def test_answers_in_a_prompt_are_not_trained_on() -> None:
    """TRL trains on the completion only."""
    record = {
        "prompt": [*asks("q0", "a0"), {"role": "user", "content": "q"}],
        "completion": asks("q", "x")[1:],
    }
    assert [message.masked for message in MessageParser()(record)] == [True, True, True, False]
    record["prompt"][1]["weight"] = 1
    assert [message.masked for message in MessageParser()(record)] == [True, False, True, False]


@pytest.mark.parametrize(
    ("record", "first", "second"),
    [
        ({"query": "q", "response": "a", "question": "x", "answer": "y"}, "qa", "query_response"),
        ({"messages": asks("q"), "conversations": says("q")}, "messages", "conversations"),
        ({"messages": asks("q"), "prompt": "p", "completion": "c"}, "messages", "prompt_completion"),
    ],
)
def test_two_styles_in_one_record_are_an_error(record: dict[str, Any], first: str, second: str) -> None:
    with pytest.raises(BadSample, match=f"columns of 2 styles, {first} and {second} .remove.*ignore_columns"):
        MessageParser()(record)
    with pytest.raises(BadSample, match="is not read, and looks like a part of the conversation"):
        MessageParser(first)(record)
    assert MessageParser(
        first, ignore_columns=["conversations", "prompt", "completion", "query", "response"]
    )(record)


def test_a_table_of_several_files_has_the_columns_of_all() -> None:
    rows = [{"question": "q", "answer": "a", "messages": None}, {"messages": asks("q", "x")}]
    records = open_source(datasets.Dataset.from_list(rows))
    assert [len(MessageParser()(records[i])) for i in range(2)] == [2, 2]
    table = open_source(datasets.Dataset.from_list([{"conversations": says("q")}]))
    assert parse(table[0]) == [("user", ["q"]), ("assistant", ["x"])]


def test_tags_are_places_in_questions_and_in_results_of_tools() -> None:
    call = '{"name": "zoom", "arguments": {}}'
    turns = [*says("<image>zoom", "")[:1], {"from": "function_call", "value": call}]
    turns += [{"from": "observation", "value": "<image>"}, {"from": "gpt", "value": "x"}]
    parsed = MessageParser()({"images": ["a.png", "b.png"], "conversations": turns})
    assert [part["content"] for part in parsed[2].content] == ["b.png"]
    messages = [*asks("q", "a"), {"role": "tool", "content": "see <image> there"}, asks("q")[1]]
    assert parse({"messages": messages, "images": ["a.png"]})[2] == ("ipython", ["see", A, "there"])
    with pytest.raises(BadSample, match=r"conversations\[2\]: more <image> tags than the 1 image"):
        MessageParser()({"images": ["a.png"], "conversations": turns})


@pytest.mark.parametrize("tag", ["<image>", "<video>"])
@pytest.mark.parametrize("style", ["messages", "conversations", "qa", "query", "alpaca", "prompt"])
def test_tags_without_media_are_an_error_in_every_style(tag: str, style: str) -> None:
    text = f"{tag}\nwhat is this?"
    record = {
        "messages": {"messages": asks(text)},
        "conversations": {"conversations": says(text)},
        "qa": {"question": text, "answer": "x"},
        "query": {"query": text, "response": "x"},
        "alpaca": {"instruction": text, "output": "x"},
        "prompt": {"prompt": text, "completion": "x"},
    }[style]
    kind = tag.strip("<>")
    for none in (None, "", [""], [None], float("nan"), {"bytes": None, "path": None}, [], "[]"):
        for column in (kind, f"{kind}s"):
            with pytest.raises(
                BadSample, match=rf"more {tag} tags than the 0 {kind}.*if the letters are meant"
            ):
                MessageParser()({**record, column: none})


def test_letters_are_written_as_a_typed_part() -> None:
    part = {"type": "text", "text": "What does <image> do?"}
    assert parse({"messages": asks([part])})[0] == ("user", ["What does <image> do?"])
    assert parse({"messages": asks([{"type": "image"}, part]), "image": "a.png"})[0][1] == [A, part["text"]]


@pytest.mark.parametrize("like", ["<image_0>", "<image 1>", "<Image>", "<|image|>", "<img>", "<VIDEO>"])
def test_what_looks_like_a_tag_is_no_tag(like: str) -> None:
    with pytest.raises(BadSample, match=r"is not a tag, but letters \(write <image>"):
        MessageParser()({"question": f"{like} or?", "answer": "x", "images": ["a.png"]})
    assert parse({"question": f"{like} or?", "answer": "x"})[0] == ("user", [f"{like} or?"])


@pytest.mark.parametrize(
    "none", ["", [""], [None], float("nan"), {"bytes": None, "path": None}, [], [[]], "  "]
)
def test_media_that_are_none(none: Any) -> None:
    for record in ({"conversations": says("q")}, {"messages": asks("q")}, {"question": "q", "answer": "x"}):
        for column in ("image", "images", "video", "videos", "audios"):
            assert parse({**record, column: none}) == [("user", ["q"]), ("assistant", ["x"])]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"messages": '[{"role": "user"'}, "messages: not valid JSON"),
        ({"messages": {"role": ["user"], "content": ["q", "a"]}}, "whose values are not lists of one length"),
        ({"messages": {"role": "user", "content": "q"}}, "write .* around a single turn"),
        ({"query": "q", "response": "a", "history": "q"}, "history: not valid JSON"),
        (
            {"query": "q", "response": "a", "history": [["q"]]},
            r"history\[0\]: expected \[\"question\", \"answer\"\]",
        ),
        (
            {"query": "q", "response": "a", "history": [["q", 3]]},
            r"history\[0\]\[1\]: expected text, got int",
        ),
        (
            {"messages": [{"role": "user", "content": "q", "value": "r"}]},
            "a turn with both content and value",
        ),
        ({"prompt": 3, "completion": "x"}, "prompt: expected a list of turns, got int"),
        ({"instruction": "q", "output": None}, r"^output is null \(write the output, or remove the sample"),
        ({"question": "q", "answer": None}, r"^answer is null \(write the answer, or remove the sample\)$"),
        ({"question": "q", "answer": float("nan"), "messages": None}, "^answer is null"),
        ({"query": None, "response": float("nan")}, "^query and response are null"),
        ({"messages": None}, "^messages is null"),
        ({"prompt": "q", "completion": None}, "^completion is null"),
        (
            {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": None}]},
            r"messages\[1\].content: expected text, got null \(write it, or remove the sample\)",
        ),
        ({"text": "q"}, "expected the columns messages, or conversations, or question and"),
        ({"question": "q \ud83d", "answer": "x"}, r"question: half of a character, .*\\ud83d"),
    ],
)
def test_bad_records_of_these_styles(record: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSample, match=message):
        MessageParser()(record)
