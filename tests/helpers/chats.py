"""Random conversations to test transforms, as torchtune messages and as input of chat templates."""

# ruff: noqa: E501 - a list of strings

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torchtune.data import Message
from videos import decode_all, encode

# Text that tokenizers or templates could treat in more than one way.
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


class Clip(NamedTuple):
    """A video given by its frames."""

    frames: int
    height: int
    width: int
    fps: float


Size = tuple[int, int]  # (height, width) of an image


@dataclass
class Conversation:
    """`messages` are torchtune's, `plain` is the input of chat templates, `media` are the images and videos."""

    messages: list[Message]
    plain: list[dict[str, Any]]
    media: list[Size | Clip]

    def pixels(self, kind: str) -> list[torch.Tensor]:
        """The images [3, h, w] or videos [t, 3, h, w]."""
        return [part["content"] for m in self.messages for part in m.content if part["type"] == kind]

    def processor_inputs(self) -> dict[str, Any]:
        """The arguments of transformers' processors other than the text."""
        clips = [medium for medium in self.media if isinstance(medium, Clip)]
        metadata = [
            {"total_num_frames": c.frames, "fps": c.fps, "frames_indices": list(range(c.frames))}
            for c in clips
        ]
        inputs: dict[str, Any] = {"images": self.pixels("image") or None}
        if clips:
            inputs |= {"videos": self.pixels("video"), "video_metadata": metadata, "do_sample_frames": False}
        return inputs


Block = tuple[list[int], int, int]  # times, rows and columns of a run of visual tokens


def positions_by_walk(tokens: list[int], visual: set[int], blocks: list[Block]) -> list[tuple[int, int, int]]:
    """M-RoPE positions by the published rule, one token after the other.

    A visual token gets the next cell of its block, counted from the block's start. Text and the start of a block
    get the highest position so far + 1.
    """
    out: list[tuple[int, int, int]] = []
    cells: list[tuple[int, int, int]] = []
    rest, start, highest = list(blocks), 0, -1
    for token in tokens:
        if token in visual:
            if not cells:
                times, rows, columns = rest.pop(0)
                cells = [
                    (start + t, start + r, start + c)
                    for t in times
                    for r in range(rows)
                    for c in range(columns)
                ]
            out.append(cells.pop(0))
            highest = max(highest, *out[-1])
            start = start if cells else highest + 1
        else:
            out.append((start,) * 3)
            start += 1
    assert not rest and not cells
    return out


def mask_by_search(
    tokens: list[int], answer: tuple[int, ...], stops: set[int], skipped: int, after: int, masked: list[bool]
) -> list[bool]:
    """The mask by a rule on finished ids: after each `answer`, train up to the next of `stops`.

    Args:
        tokens: the sample's.
        answer: ids that start an answer.
        stops: ids that end an answer.
        skipped: number of ids, from the start of `answer`, that belong to the header and are not trained on.
        after: number of ids trained on from the stop on, including it.
        masked: for each answer, whether it is not trained on.
    """
    mask, answers = [True] * len(tokens), iter(masked)
    for start in range(len(tokens)):
        if tuple(tokens[start : start + len(answer)]) == answer and not next(answers):
            end = next(i for i in range(start + 1, len(tokens)) if tokens[i] in stops) + after
            mask[start + skipped : end] = [False] * (end - start - skipped)
    assert next(answers, None) is None
    return mask


def asked_about_a_file(transform: Any, processor: Any, folder: Path, **options: Any) -> tuple[Any, Any]:
    """Our prompt and the processor's inputs for a question about 7 seconds of video at 25 frames per second."""
    path = encode(folder / "clip.mp4", 175, 40, 60, rate=25, codec="mpeg4", options={"g": "25"})
    question = [{"type": "video", "content": path}, {"type": "text", "content": "What?"}]
    prompt = transform({"messages": [Message("user", question)]}, inference=True)
    plain = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What?"}]}]
    text = processor.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
    frames = torch.from_numpy(np.stack(decode_all(path))).permute(0, 3, 1, 2)
    options |= {"video_metadata": [{"total_num_frames": 175, "fps": 25.0, "duration": 7.0}]}
    options |= {"do_sample_frames": True, "return_tensors": "pt"}
    return prompt, processor(text=[text], videos=[frames], **options)


def random_text(rng: np.random.Generator) -> str:
    return "".join(rng.choice(TEXTS) for _ in range(rng.integers(1, 4)))


def random_conversation(rng: np.random.Generator) -> Conversation:
    """System or none, one to four exchanges, some tool results, some masked answers.

    A question has up to three images and videos, a tool result sometimes one; a third of them are videos.
    """
    conversation = Conversation([], [], [])
    if rng.random() < 0.4:
        _add(conversation, "system", [random_text(rng)])
    for _ in range(rng.integers(1, 5)):
        parts: list[Any] = [random_text(rng) for _ in range(rng.integers(1, 3))]
        for _ in range(rng.choice([0, 0, 1, 1, 2, 3])):
            parts.insert(int(rng.integers(0, len(parts) + 1)), _random_medium(rng))
        _add(conversation, "user", parts)
        for _ in range(rng.choice([0, 0, 0, 0, 1, 2])):
            _add(conversation, "assistant", [random_text(rng)])
            for _ in range(rng.integers(1, 3)):
                found = [_random_medium(rng)] if rng.random() < 0.25 else []
                _add(conversation, "tool", [random_text(rng), *found])
        _add(conversation, "assistant", [random_text(rng)], masked=rng.random() < 0.15)
    return conversation


def _random_medium(rng: np.random.Generator) -> Size | Clip:
    return _random_clip(rng) if rng.random() < 1 / 3 else _random_size(rng)


def _random_size(rng: np.random.Generator) -> Size:
    return int(rng.integers(20, 160)), int(rng.integers(20, 160))


def _random_clip(rng: np.random.Generator) -> Clip:
    fps = float(rng.choice([0.4, 1, 2, 3, 7.5, 24, 29.97]))
    return Clip(*(int(rng.integers(*limits)) for limits in ((2, 7), (20, 70), (20, 70))), fps)


def _add(conversation: Conversation, role: str, parts: list[Any], masked: bool = False) -> None:
    ours, plain = [], []
    for part in parts:
        if isinstance(part, str):
            ours.append({"type": "text", "content": part})
            plain.append({"type": "text", "text": part})
            continue
        number = len(conversation.media)  # also the colour, so that it is seen where two change places
        if isinstance(part, Clip):
            frames = torch.full((part.frames, 3, part.height, part.width), number, dtype=torch.uint8)
            ours.append({"type": "video", "content": frames, "source_fps": part.fps})
        else:
            ours.append({"type": "image", "content": torch.full((3, *part), number, dtype=torch.uint8)})
        plain.append({"type": ours[-1]["type"]})
        conversation.media.append(part)
    conversation.messages.append(Message(ROLES[role], ours, masked=masked))
    # A lone text is also common as a plain string.
    content = parts[0] if len(parts) == 1 and isinstance(parts[0], str) else plain
    conversation.plain.append({"role": role, "content": content})
