"""Random conversations for the transform's tests, in torchtune's form and in the form chat templates take."""

# ruff: noqa: E501 - a list of strings

from dataclasses import dataclass
from typing import Any

import numpy as np
from torchtune.data import Message

# Text that BPE, normalisation or the template's newlines could treat in more than one way.
TEXTS = [
    "Hello, how are you?", "What do you see in this image?", "", " ", "\n", "\n\n\n", " \n leading", "trailing \n",
    "\r\nwindows\r\n", "tab\tand  two spaces", "1234567890 3.14e-10", "it's they're I'll we'd", "ASSISTANT assistant",
    "assistant", "user\nassistant\n", "system", "你好，请描述这张图片。", "日本語のテキスト", "한국어 문장입니다", "Привет, мир",
    "مرحبا بالعالم", "שלום עולם", "नमस्ते दुनिया", "สวัสดีชาวโลก", "e\u0301 a\u0308 decomposed", "é ä composed", "\u0301combining first",
    "😀👍🏽👩‍👩‍👧‍👦🇩🇪", "def f(x):\n    return {k: v for k, v in x.items()}\n", "#include <stdio.h>\nint main() {}", "SELECT * FROM t;",
    "a\u200bzero\u00a0width\u3000space", "\ufeffbom", "x" * 300, " " * 40, "\n" * 30, "$\\frac{a}{b}$", "<html><body>",
    "<tool_call>\n{\"name\": \"f\"}\n</tool_call>", "<think>\nA cat, or two?\n</think>\n\nTwo.", "\n</think>\n", "<think>",
    "<tool_response>\n1\n</tool_response>", "<|fim_prefix|>code<|fim_suffix|>", "<|file_sep|>", "<image>", "<video>",
    "<|im_end", "im_start|>", "<|image_pad |>", "<| im_end |>", "{{ messages }}", "{% for x in y %}",
]  # fmt: skip
ROLES = {"system": "system", "user": "user", "assistant": "assistant", "tool": "ipython"}


@dataclass
class Conversation:
    """`messages` as torchtune has them, `plain` as chat templates take them, `sizes` (h, w) of the images."""

    messages: list[Message]
    plain: list[dict[str, Any]]
    sizes: list[tuple[int, int]]


def random_text(rng: np.random.Generator) -> str:
    return "".join(rng.choice(TEXTS) for _ in range(rng.integers(1, 4)))


def random_conversation(rng: np.random.Generator) -> Conversation:
    """System or none, one to four exchanges with up to three images, some tool results, some masked answers."""
    conversation = Conversation([], [], [])
    if rng.random() < 0.4:
        _add(conversation, "system", [random_text(rng)])
    for _ in range(rng.integers(1, 5)):
        parts: list[Any] = [random_text(rng) for _ in range(rng.integers(1, 3))]
        for _ in range(rng.choice([0, 0, 1, 1, 2, 3])):
            size = (int(rng.integers(20, 160)), int(rng.integers(20, 160)))
            parts.insert(int(rng.integers(0, len(parts) + 1)), size)
        _add(conversation, "user", parts)
        for _ in range(rng.choice([0, 0, 0, 0, 1, 2])):
            _add(conversation, "assistant", [random_text(rng)])
            for _ in range(rng.integers(1, 3)):
                _add(conversation, "tool", [random_text(rng)])
        _add(conversation, "assistant", [random_text(rng)], masked=rng.random() < 0.15)
    return conversation


def _add(conversation: Conversation, role: str, parts: list[Any], masked: bool = False) -> None:
    ours, plain = [], []
    for part in parts:
        if isinstance(part, str):
            ours.append({"type": "text", "content": part})
            plain.append({"type": "text", "text": part})
        else:
            ours.append({"type": "image", "content": np.full((*part, 3), len(conversation.sizes), np.uint8)})
            plain.append({"type": "image"})
            conversation.sizes.append(part)
    conversation.messages.append(Message(ROLES[role], ours, masked=masked))
    # A lone text is also common as a plain string.
    content = parts[0] if len(parts) == 1 and isinstance(parts[0], str) else plain
    conversation.plain.append({"role": role, "content": content})
