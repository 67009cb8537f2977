"""Records whose columns are a question and its answer, with the exchanges before them in `history`."""

from collections.abc import Mapping
from typing import Any

from torchtune.data import Message

from torchtune_qwenvl.data.records.styles.tags import places_in, with_rest_in_front
from torchtune_qwenvl.data.records.styles.turns import Reading, as_turns, make_message, read_turns
from torchtune_qwenvl.data.records.text import as_text, from_json, is_blank, is_null
from torchtune_qwenvl.transforms.errors import BadSample

Record = Mapping[str, Any]


def read_qa(record: Record, reading: Reading, weight: float | None) -> list[Message]:
    """``question`` and ``answer``."""
    return _read_exchanges([("question", record["question"], "answer", record["answer"])], reading, weight)


def read_query(record: Record, reading: Reading, weight: float | None) -> list[Message]:
    """ms-swift: ``query`` and ``response``, and the exchanges before them in ``history``."""
    last = ("query", record["query"], "response", record["response"])
    return _read_exchanges([*_history(record.get("history")), last], reading, weight)


def read_alpaca(record: Record, reading: Reading, weight: float | None) -> list[Message]:
    """Alpaca and LLaMA-Factory: ``input`` follows ``instruction`` on a line of its own."""
    texts = [("instruction", record["instruction"]), ("input", record.get("input"))]
    question = "\n".join(as_text(text, name) for name, text in texts if not _is_empty(text))
    last = ("instruction", question, "output", record["output"])
    return _read_exchanges([*_history(record.get("history")), last], reading, weight)


def read_completion(record: Record, reading: Reading, weight: float | None) -> list[Message]:
    """TRL: ``prompt`` and ``completion``, texts or lists of messages.

    Answers in the prompt are not trained on, unless they say so.
    """
    prompt, completion = record["prompt"], record["completion"]
    if isinstance(prompt, str) and isinstance(completion, str):
        return _read_exchanges([("prompt", prompt, "completion", completion)], reading, weight)
    before = _messages(prompt, "prompt", "user", reading, 0.0)
    return [*before, *_messages(completion, "completion", "assistant", reading, weight)]


def _messages(value: Any, column: str, role: str, reading: Reading, weight: float | None) -> list[Message]:
    turns = [{"role": role, "content": value}] if isinstance(value, str) else as_turns(value, column)
    return read_turns(turns, column, reading, weight)


def _read_exchanges(
    exchanges: list[tuple[str, Any, str, Any]], reading: Reading, weight: float | None
) -> list[Message]:
    """Messages of (place, question, place, answer). Images and videos without tags stand in front of all."""
    questions = [as_text(question, where) for where, question, _, _ in exchanges]
    rest, messages = with_rest_in_front(reading.pools, questions), list[Message]()
    for text, (where, _, place, answer) in zip(questions, exchanges, strict=True):
        parts = places_in(text, reading.pools, where)
        messages.append(make_message("user", [*rest, *parts]))
        said = {"type": "text", "content": as_text(answer, place)}
        messages.append(make_message("assistant", [said], 1.0 if weight is None else weight))
        rest = []
    return messages


def _history(value: Any) -> list[tuple[str, Any, str, Any]]:
    """``[["question", "answer"], ...]``, a list or its JSON."""
    pairs = [] if is_blank(value) else from_json(value, "history")
    if not isinstance(pairs, (list, tuple)):
        raise BadSample(f"expected a list of exchanges, got {type(value).__name__}", where="history")
    for number, pair in enumerate(pairs):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise BadSample(
                'expected ["question", "answer"]', where=f"history[{number}]", fix="or write it as messages"
            )
    return [
        (f"history[{number}][0]", question, f"history[{number}][1]", answer)
        for number, (question, answer) in enumerate(pairs)
    ]


def _is_empty(text: Any) -> bool:
    return is_null(text) or text == ""
