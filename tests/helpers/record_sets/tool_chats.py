"""Random conversations with tools, as records of a dataset and as input of chat templates."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from chats import TEXTS, random_text

from torchtune_qwenvl.data.records.chat_reader import ChatReader
from torchtune_qwenvl.data.records.media import MediaFinder
from torchtune_qwenvl.data.records.messages import MessageParser

NAMES = ["add", "get_weather", "zoom-in", "finde_größe", "f", "db.query"]
LEAVES = [None, True, False, 0, -7, 3.25, 1e-10, 10**20, "", 'é\n"quoted" \\ </tool_call>', [], {}, "<b>&'"]


@dataclass
class ToolChat:
    """`tools` in the form of OpenAI's API; a turn has role, text, images, calls and whether it is masked.

    A call is (name, arguments, their JSON), with None instead of JSON if the record has an object.
    """

    tools: list[dict[str, Any]]
    turns: list[dict[str, Any]]

    @property
    def images(self) -> list[torch.Tensor]:
        return [image for turn in self.turns for image in turn["images"]]

    @property
    def masked(self) -> list[bool]:
        """Whether each answer is masked."""
        return [turn["masked"] for turn in self.turns if turn["role"] == "assistant"]

    def plain(self, objects: bool) -> list[dict[str, Any]]:
        """Input of a chat template; `objects`: arguments are objects, not JSON."""
        return [self._turn(turn, objects, with_images=False) for turn in self.turns]

    def record(self, rng: np.random.Generator) -> dict[str, Any]:
        """A record in one of the forms in which users write tools and calls."""
        tools: Any = [tool["function"] if rng.random() < 0.3 else tool for tool in self.tools]
        tools = [json.dumps(tool) if rng.random() < 0.2 else tool for tool in tools]
        messages = [self._turn(turn, objects=False, with_images=True) for turn in self.turns]
        for message in messages:
            if calls := message.get("tool_calls"):
                message["tool_calls"] = [call["function"] if rng.random() < 0.3 else call for call in calls]
                if message["content"] == "" and rng.random() < 0.5:
                    message["content"] = None
        return {"messages": messages, "tools": json.dumps(tools) if rng.random() < 0.5 else tools}

    def _turn(self, turn: dict[str, Any], objects: bool, with_images: bool) -> dict[str, Any]:
        content: Any = turn["text"]
        # As a string, a tag in a question or a result would be the place of an image.
        if turn["images"] or (with_images and ("<image>" in content or "<video>" in content)):
            image = [{"type": "image", **({"image": i} if with_images else {})} for i in turn["images"]]
            content = [*image, {"type": "text", "text": content}]
        out = {"role": turn["role"], "content": content}
        if turn["calls"]:
            written = [
                {"name": name, "arguments": arguments if objects or text is None else text}
                for name, arguments, text in turn["calls"]
            ]
            out["tool_calls"] = [{"type": "function", "id": "c", "function": call} for call in written]
        if turn["masked"]:
            out["weight"] = 0
        return out


def random_tool_chat(rng: np.random.Generator) -> ToolChat:
    """Up to four tools, one to three questions, rounds of calls and results, an answer or a call last."""
    turns: list[dict[str, Any]] = []

    def add(role: str, text: str, n_images: int = 0, calls: Any = (), masked: bool = False) -> None:
        shape = [(3, *rng.integers(30, 90, 2)) for _ in range(n_images)]
        images = [torch.zeros(*map(int, one), dtype=torch.uint8) for one in shape]
        turns.append({"role": role, "text": text, "images": images, "calls": calls, "masked": masked})

    def answer(calls: int, masked: bool = False) -> None:
        text = random_text(rng) if rng.random() < 0.5 else str(rng.choice(["", "", "\n", "</think>", "Hm."]))
        add("assistant", text, calls=[random_call(rng) for _ in range(calls)], masked=masked)

    if rng.random() < 0.4:
        add("system", random_text(rng))
    n_questions = int(rng.integers(1, 4))
    for question in range(n_questions):
        add("user", random_text(rng), int(rng.integers(0, 2)))
        for _ in range(rng.integers(0, 3)):
            answer(int(rng.integers(1, 4)), masked=rng.random() < 0.2)
            for _ in range(rng.integers(1, 3)):
                add("tool", random_text(rng), int(rng.random() < 0.2))
        answer(int(rng.integers(0, 3)) if question == n_questions - 1 else 0)
    tools = [{"type": "function", "function": random_function(rng)} for _ in range(rng.integers(0, 5))]
    return ToolChat(tools, turns)


def random_call(rng: np.random.Generator) -> tuple[str, dict[str, Any], str | None]:
    arguments = {str(rng.choice(NAMES)): random_value(rng) for _ in range(rng.integers(0, 4))}
    text = json.dumps(arguments, ensure_ascii=bool(rng.integers(2)), indent=[None, 1][rng.integers(2)])
    return str(rng.choice(NAMES)), arguments, text if rng.random() < 0.5 else None


def random_function(rng: np.random.Generator) -> dict[str, Any]:
    entries = {
        "name": str(rng.choice(NAMES)),
        "description": random_text(rng),
        "parameters": {"type": "object", "properties": {"a": random_value(rng)}, "required": []},
        "strict": None,
    }
    keys = ["name", *(key for key in list(entries)[1:] if rng.random() < 0.7)]
    rng.shuffle(keys)  # their order is the author's
    return {key: entries[key] for key in keys}


def random_value(rng: np.random.Generator, depth: int = 2) -> Any:
    kind = rng.integers(0, 4) if depth else 0
    if kind == 1:
        return {str(rng.choice(TEXTS)): random_value(rng, depth - 1) for _ in range(rng.integers(0, 3))}
    if kind == 2:
        return [random_value(rng, depth - 1) for _ in range(rng.integers(0, 3))]
    return str(rng.choice(TEXTS)) if kind == 3 else LEAVES[rng.integers(len(LEAVES))]


def sample_of(transform: Any, record: dict[str, Any]) -> dict[str, Any]:
    """The sample that training makes of the record."""
    return ChatReader(MessageParser(), MediaFinder(), transform).sample(record, None)


def processed(processor: Any, chat: ToolChat, *, objects: bool = False, **options: Any) -> list[int]:
    """The tokens of the conversation from transformers' processor."""
    text = processor.apply_chat_template(
        chat.plain(objects), tools=chat.tools or None, tokenize=False, **options
    )
    return list(map(int, processor(text=[text], images=chat.images or None)["input_ids"][0]))
