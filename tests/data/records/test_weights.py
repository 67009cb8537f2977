"""The weight of an answer: one meaning of all marks in all styles, down to the labels of the sample."""

from typing import Any

import pytest
from record_sets.odd import PNG

from torchtune_qwenvl import load_transform
from torchtune_qwenvl.data.records.chat_reader import ChatReader
from torchtune_qwenvl.data.records.media import MediaFinder
from torchtune_qwenvl.data.records.messages import MessageParser
from torchtune_qwenvl.transforms.chat.weights import weight_of
from torchtune_qwenvl.transforms.errors import BadSample

SAME = {
    0.0: [
        ("weight", 0),
        ("loss_weight", 0.0),
        ("loss_scale", 0),
        ("loss", False),
        ("train", False),
        ("masked", True),
    ],
    1.0: [
        ("weight", 1),
        ("loss_weight", 1.0),
        ("loss_scale", 1),
        ("loss", True),
        ("train", True),
        ("masked", False),
    ],
    0.5: [("weight", 0.5), ("loss_weight", 0.5), ("loss_scale", 0.5), ("loss", 0.5), ("train", 0.5)],
    3.0: [("weight", 3), ("loss", 3.0)],
}
MARKS = [(weight, mark, value) for weight, marks in SAME.items() for mark, value in marks]


def styles(**marks: Any) -> dict[str, dict[str, Any]]:
    """One conversation in every style, its last answer with the marks."""
    ask, say = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    human, gpt = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}
    call = {"from": "function_call", "value": '{"name": "f"}'}
    return {
        "messages": {"messages": [ask, say, ask, {**say, **marks}]},
        "conversations": {"conversations": [human, gpt, human, {**gpt, **marks}]},
        "call": {"conversations": [human, {**call, **marks}]},
        "qa": {"question": "q", "answer": "a", **marks},
        "query_response": {"query": "q", "response": "a", **marks},
        "alpaca": {"instruction": "q", "output": "a", **marks},
        "prompt_completion": {"prompt": "q", "completion": "a", **marks},
        "completion turns": {"prompt": [ask], "completion": [{**say, **marks}]},
    }


@pytest.mark.parametrize(("weight", "mark", "value"), MARKS)
def test_every_mark_means_the_same_in_every_style(weight: float, mark: str, value: Any) -> None:
    for name, record in styles(**{mark: value}).items():
        messages = MessageParser()(record)
        assert weight_of(messages[-1]) == weight and messages[-1].masked == (weight == 0), name
        assert [weight_of(m) for m in messages[:-1] if m.role == "assistant"] == [1.0] * (len(messages) == 4)


@pytest.mark.parametrize("mark", ["weight", "loss", "train", "loss_scale", "loss_weight", "masked"])
@pytest.mark.parametrize("value", ["0", "false", -1, 1e9, float("inf"), 10**400, [0], {"a": 1}, "\ud800"])
def test_what_is_no_weight_is_an_error(mark: str, value: Any) -> None:
    for record in styles(**{mark: value}).values():
        with pytest.raises(BadSample, match=f"{mark} expects true"):
            MessageParser()(record)


def test_marks_that_contradict_or_miss_the_answer() -> None:
    for record in styles(weight=0, loss=True).values():
        with pytest.raises(BadSample, match="the weights weight and loss differ"):
            MessageParser()(record)
    for record in styles(weight=0, loss=False, masked=None).values():
        assert MessageParser()(record)[-1].masked
    for marks in ({"weight": 1}, {"loss": True}, {"masked": False}):
        turns = [{"role": "user", "content": "q", **marks}, {"role": "assistant", "content": "a"}]
        with pytest.raises(
            BadSample, match=r"messages\[0\]: a turn of role 'user' with a weight of 1 \(only answ"
        ):
            MessageParser()({"messages": turns})
    turns[0] = {"role": "user", "content": "q", "weight": 0}
    assert len(MessageParser()({"messages": turns})) == 2


def test_a_mark_of_the_record_is_for_answers_without_their_own() -> None:
    for name in ("messages", "conversations"):
        record = {**styles(weight=1)[name], "weight": 0.25}
        assert [weight_of(m) for m in MessageParser()(record)] == [0, 0.25, 0, 1]


def test_calls_join_an_answer_of_the_same_weight_only() -> None:
    turns = [
        {"from": "human", "value": "q"},
        {"from": "gpt", "value": "a", "loss": 0.5},
        {"from": "function_call", "value": '{"name": "f"}', "loss": 0.5},
        {"from": "function_call", "value": '{"name": "g"}'},
    ]
    assert [weight_of(m) for m in MessageParser()({"conversations": turns})] == [0, 0.5, 1]


@pytest.mark.parametrize("style", ["messages", "conversations"])
def test_train_on_the_last_answer(style: str) -> None:
    weights = {
        train_on: [weight_of(m) for m in MessageParser(train_on=train_on)(styles(weight=0.5)[style])]
        for train_on in ("all", "last")
    }
    assert weights == {"all": [0, 1, 0, 0.5], "last": [0, 0, 0, 0.5]}


def test_tokens_of_the_sample_have_the_weights(tiny_folder: Any) -> None:
    """The weight of an answer is that of its tokens, its end of turn included; without one there is none."""
    transform = load_transform(tiny_folder)

    def sample(*answers: float, train_on: str = "all") -> dict[str, Any]:
        turns: list[dict[str, Any]] = []
        for weight in answers:
            image = {"type": "image", "base64": PNG}
            turns += [{"role": "user", "content": [image, {"type": "text", "text": "q"}]}]
            turns += [{"role": "assistant", "content": "It is so.", "weight": weight}]
        reader = ChatReader(MessageParser(train_on=train_on), MediaFinder(), transform)
        return reader.sample({"messages": turns}, None)

    assert "weights" not in sample(1, 0, 1) and "weights" not in sample(1, 1, train_on="last")
    mixed = sample(0.5, 0, 1, 2)
    whole = sample(1, 1, 1, 1)
    assert mixed["tokens"] == whole["tokens"]
    trained = [i for i, masked in enumerate(whole["mask"]) if not masked]
    per_answer = len(trained) // 4
    expected = [weight for weight in (0.5, 0.0, 1.0, 2.0) for _ in range(per_answer)]
    assert [mixed["weights"][i].item() for i in trained] == expected
    assert mixed["weights"].sum() == sum(expected)
    assert [mixed["mask"][i] for i in trained] == [weight == 0 for weight in expected]


def test_prompt_templates_keep_the_weights(tiny_folder: Any) -> None:
    transform = load_transform(tiny_folder, prompt_template={"user": ("Ask: ", "")})
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0.5}]
    sample = ChatReader(MessageParser(), MediaFinder(), transform).sample({"messages": turns}, None)
    assert set(sample["weights"].tolist()) == {0.0, 0.5}
    assert "Ask: q" in transform.decode(sample["tokens"], truncate_at_eos=False)
