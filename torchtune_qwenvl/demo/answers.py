"""Generate a model's answers about images in batches, and compare them with the expected ones.

An answer is right only if it equals the expected text, such as "The digit is 7.", including the full stop.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchtune.data import Message

from torchtune_qwenvl.data.records.messages import MessageParser
from torchtune_qwenvl.generation import generate
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel


@dataclass(frozen=True)
class Answer:
    """An image, the expected answer, and the model's answer."""

    image: Path
    expected: str
    given: str

    @property
    def right(self) -> bool:
        return self.given == self.expected


def answer_accuracy(
    model: VisionLanguageModel, transform: Any, *, data: str, batch_size: int = 120
) -> dict[str, float]:
    """Share of the records in `data` that the model answers exactly; for `evaluate:` in a config.

    Args:
        model: the model; its mode (training or evaluation) is restored.
        transform: its transform.
        data: a .jsonl file of conversations; the first question of each is asked.
        batch_size: number of questions at a time.
    """
    return {"val_accuracy": accuracy(ask(model, transform, Path(data), batch_size))}


def accuracy(answers: Sequence[Answer]) -> float:
    """Share of right answers, from 0 to 1."""
    return sum(answer.right for answer in answers) / len(answers)


def ask(model: VisionLanguageModel, transform: Any, data: Path, batch_size: int = 120) -> list[Answer]:
    """Ask the first question of every record of `data`; arguments as in `answer_accuracy`."""
    exchanges = [
        _first_exchange(json.loads(line), data.parent) for line in data.read_text("utf-8").splitlines()
    ]
    was_training = model.training
    model.eval()
    given: list[str] = []
    for start in range(0, len(exchanges), batch_size):
        questions = [question for question, _ in exchanges[start : start + batch_size]]
        samples = [transform({"messages": [question]}, inference=True) for question in questions]
        rows = generate(
            model, samples, pad_id=transform.pad_id, stop_tokens=transform.stop_tokens, max_new_tokens=16
        )
        given += [transform.decode(row) for row in rows]
    model.train(was_training)
    return [
        Answer(question.content[0]["content"], answer.text_content, text)
        for (question, answer), text in zip(exchanges, given, strict=True)
    ]


def _first_exchange(record: dict[str, Any], folder: Path) -> tuple[Message, Message]:
    """The first question (with its image first, as a path) and its answer."""
    question, answer = MessageParser("conversations")(record)[:2]
    for part in question.content:
        if part["type"] == "image":
            part["content"] = folder / part["content"]
    return question, answer
