"""An evaluation of your own, called at each validation: how many answers contain the expected word.

    evaluate:
      - _component_: custom_evaluation.keyword_accuracy
        data: questions.jsonl
    run_val_every_n_steps: 100

`questions.jsonl` has one object per line: {"image": "cat.jpg", "question": "Which animal?", "keyword": "cat"}

An evaluation is a function of the model, the transform and the arguments in the config. Every rank calls it
with the same arguments. It returns figures by name; they are logged next to `val_loss`.
"""

import json
from pathlib import Path
from typing import Any

from torch import nn
from torchtune.data import Message

from torchtune_qwenvl.generation import generate


def keyword_accuracy(
    model: nn.Module, transform: Any, *, data: str, max_new_tokens: int = 32
) -> dict[str, float]:
    """Share of the questions whose generated answer contains the keyword, in any case.

    Args:
        model: the model that trains; it is left in the mode in which it came.
        transform: its transform.
        data: a .jsonl file; images are relative to its folder.
        max_new_tokens: longest answer.
    """
    path = Path(data)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    prompts = [transform({"messages": [ask(row, path.parent)]}, inference=True) for row in rows]
    was_training = model.training
    answers = generate(
        model.eval(),
        prompts,
        pad_id=transform.pad_id,
        stop_tokens=transform.stop_tokens,
        max_new_tokens=max_new_tokens,
    )
    model.train(was_training)
    texts = [transform.decode(answer).lower() for answer in answers]
    right = [row["keyword"].lower() in text for row, text in zip(rows, texts, strict=True)]
    return {"keyword_accuracy": sum(right) / len(right)}


def ask(row: dict[str, str], folder: Path) -> Message:
    """The question of one row, with its image in front."""
    image = {"type": "image", "content": folder / row["image"]}
    return Message("user", [image, {"type": "text", "content": row["question"]}])
