"""The weight of an answer in the loss, carried by its message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchtune.data import Message

from torchtune_qwenvl.transforms.errors import BadSample


class WeightedMessage(Message):
    """A message of the assistant whose tokens count in the loss with a weight other than 0 and 1.

    Args:
        content: as of torchtune's `Message`.
        weight: above 0.
        eot: as of torchtune's `Message`.
    """

    def __init__(self, content: str | list[dict[str, Any]], weight: float, eot: bool = True) -> None:
        super().__init__("assistant", content, eot=eot)
        self.weight = weight


def weight_of(message: Message) -> float:
    """The weight of a message's tokens: 0 unless it is an answer that is trained on."""
    if message.role != "assistant" or message.masked:
        return 0.0
    return message.weight if isinstance(message, WeightedMessage) else 1.0


def with_weights(messages: Sequence[Message], before: Sequence[Message]) -> list[Message]:
    """`messages` as a prompt template returned them, with the weights that they had before.

    Raises:
        BadSample: there are weights, and the template changed the number of messages.
    """
    if not any(isinstance(message, WeightedMessage) for message in before):
        return list(messages)
    if len(messages) != len(before):
        made = f"{len(messages)} messages of {len(before)}"
        raise BadSample(
            f"answers with weights, and a prompt template that makes {made}", fix="leave one of them out"
        )
    return [
        WeightedMessage(new.content, old.weight, new.eot) if isinstance(old, WeightedMessage) else new
        for new, old in zip(messages, before, strict=True)
    ]
