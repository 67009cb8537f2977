"""Turns of a conversation with a model, and answers that come token by token.

talk = Conversation(transform, sampling, max_new_tokens=256)
talk.ask("What is this?", images=["cat.jpg"])
for piece in talk.answer(model): print(piece, end="")
talk.ask("And what colour has it?")
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torchtune.data import Message

from torchtune_qwenvl.generation.decoding import stream
from torchtune_qwenvl.generation.sampling import GREEDY, Sampling
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel


class Conversation:
    """Messages so far, and how they are answered.

    Args:
        transform: the transform of the model's folder.
        sampling: how tokens are chosen.
        max_new_tokens: of an answer, at most.
        system: text of a system message; None: as the chat template has it.
    """

    def __init__(
        self,
        transform: Any,
        sampling: Sampling = GREEDY,
        max_new_tokens: int = 512,
        system: str | None = None,
    ) -> None:
        self.transform, self.sampling, self.max_new_tokens = transform, sampling, max_new_tokens
        self.messages = [] if system is None else [Message(role="system", content=system)]

    def ask(self, text: str, images: Sequence[str] = (), videos: Sequence[str] = ()) -> None:
        """Add a turn of the user: images, then videos, then the text.

        Raises:
            ValueError: a file that cannot be read; then nothing is added.
        """
        media = (("image", images), ("video", videos))
        content = [{"type": kind, "content": path} for kind, paths in media for path in paths]
        content.append({"type": "text", "content": text})
        messages = [*self.messages, Message(role="user", content=content)]
        self.transform({"messages": messages}, inference=True)
        self.messages = messages

    def answer(self, model: VisionLanguageModel, keep: bool = True) -> Iterator[str]:
        """Pieces of the answer to the last question, as they come.

        Args:
            model: on its device, in eval mode.
            keep: whether the answer becomes a turn that later questions follow; else it is only shown.
        """
        sample = self.transform({"messages": self.messages}, inference=True)
        steps = stream(
            model,
            [sample],
            pad_id=self.transform.pad_id,
            stop_tokens=self.transform.stop_tokens,
            max_new_tokens=self.max_new_tokens,
            sampling=self.sampling,
        )
        tokens: list[int] = []
        shown = ""
        for (token,) in steps:
            tokens += [] if token is None else [token]
            piece = new_text(self.transform.decode, tokens, shown)
            shown += piece
            if piece:
                yield piece
        if keep:
            self.messages = [*self.messages, Message(role="assistant", content=shown)]

    def take_back(self) -> bool:
        """Remove the last question and its answer; whether there was one."""
        asked = [i for i, message in enumerate(self.messages) if message.role == "user"]
        self.messages = self.messages[: asked[-1]] if asked else self.messages
        return bool(asked)

    def unanswer(self) -> bool:
        """Remove the last answer, so that its question can be answered again; whether there was one."""
        answered = bool(self.messages) and self.messages[-1].role == "assistant"
        self.messages = self.messages[:-1] if answered else self.messages
        return answered


def new_text(decode: Callable[[list[int]], str], tokens: list[int], shown: str) -> str:
    """The text of `tokens` after `shown`, up to the last whole character; one may need several tokens."""
    return decode(tokens).rstrip("\ufffd").removeprefix(shown)
