"""Which added tokens a conversation's text may hold, and a warning about those that it spells in letters.

Text is text: a user's `<|im_end|>` must not end the turn. Marks such as `<|box_start|>` are another matter,
the models write them into their answers. A setting names the ones that text may hold.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Collection, Sequence
from typing import Any

from torch.utils.data import get_worker_info
from torchtune.data import Message

from torchtune_qwenvl.transforms.chat.tokenizer import BPETokenizer

GROUNDING = "grounding"  # stands for the family's own marks of objects, boxes and points
ADVICE = (
    "to encode it as one token, name it in text_tokens (grounding names the family's marks of boxes); tokens "
    "of the chat template, of images and of videos always stay text"
)


def text_tokens_of(
    wanted: Sequence[str] | str, grounding: Sequence[str], reserved: Collection[str]
) -> tuple[str, ...]:
    """The names of a setting `text_tokens`, with the family's marks in place of "grounding".

    Args:
        wanted: names, or "grounding".
        grounding: the family's marks.
        reserved: tokens with which text would change the conversation's structure.

    Raises:
        ValueError: one of them is reserved, or the family has no marks.
    """
    names: list[str] = []
    for name in [wanted] if isinstance(wanted, str) else wanted:
        if name == GROUNDING and not grounding:
            raise ValueError(
                "text_tokens: this family has no tokens of its own for boxes; name tokens instead"
            )
        names += grounding if name == GROUNDING else [name]
    if forbidden := [name for name in names if name in reserved]:
        raise ValueError(
            f"text_tokens: {forbidden[0]} belongs to the chat template or to images and videos; in text it "
            "would change where a turn or an image begins. Leave it out"
        )
    return tuple(dict.fromkeys(names))


class SpelledTokens:
    """Finds added tokens that text spells, and that are encoded as ordinary letters.

    Args:
        tokenizer: its special tokens, except those that text may hold, are looked for.
    """

    def __init__(self, tokenizer: BPETokenizer) -> None:
        names = sorted(tokenizer.split_tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, names))) if names else None
        self._warned = False

    def quiet(self) -> SpelledTokens:
        """The same, without a warning."""
        same = copy.copy(self)
        same._warned = True
        return same

    def of(self, messages: Sequence[Message]) -> tuple[str, ...]:
        """The names that the text of these messages spells, each once."""
        if self._pattern is None:
            return ()
        texts = [text for message in messages for part in message.content if (text := _text(part))]
        return tuple(dict.fromkeys(name for text in texts for name in self._pattern.findall(text)))

    def warn(self, messages: Sequence[Message]) -> None:
        """Warn about the first text that spells one: once, and of several workers only in the first."""
        worker = get_worker_info()
        if self._warned or (worker is not None and worker.id > 0):
            return
        if names := self.of(messages):
            self._warned = True
            spelled = ", ".join(names)
            warnings.warn(f"text spells {spelled}, which is encoded as letters: {ADVICE}", stacklevel=3)


def _text(part: Any) -> str | None:
    content = part.get("content")
    return content if part.get("type") == "text" and isinstance(content, str) else None
