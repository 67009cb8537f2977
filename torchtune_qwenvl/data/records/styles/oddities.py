"""What is odd about a conversation but no error: it is trained on, and named."""

import re
from collections.abc import Sequence
from itertools import pairwise

from torchtune.data import Message

from torchtune_qwenvl.data.records.columns import Leftovers
from torchtune_qwenvl.data.records.styles.tags import literal_tags

_COORDINATES = re.compile(
    r'"(?:bbox|bbox_2d|box_2d|point_2d)"\s*:\s*\[+\s*-?\d|<\|box_start\|>\s*\(\s*\d|<\|begin_of_box\|>\s*\[+\s*\d'
)
_TWO_IN_A_ROW = {"user": "two questions in a row", "assistant": "two answers in a row"}


def note_oddities(messages: Sequence[Message], leftovers: Leftovers) -> None:
    """Note empty answers, turns in an odd order, and tags and coordinates that are letters.

    Args:
        messages: of one record.
        leftovers: gets the notes.
    """
    roles = [message.role for message in messages if message.role != "system"]
    if roles and roles[0] == "assistant":
        leftovers.note("a conversation begins with an answer")
    if roles and roles[-1] != "assistant":
        leftovers.note("the last turn is not answered, so nothing is learnt from it")
    for first, second in pairwise(roles):
        if first == second and first in _TWO_IN_A_ROW:
            leftovers.note(_TWO_IN_A_ROW[first])
    if any(message.role == "system" for message in messages[1:]):
        leftovers.note("a system turn that is not the first turn")
    for message in messages:
        _note_text(message, leftovers)
    if any(part["type"] == "image" for message in messages for part in message.content):
        _note_coordinates(messages, leftovers)


def _note_text(message: Message, leftovers: Leftovers) -> None:
    texts = [part["content"] for part in message.content if part["type"] == "text"]
    if message.role == "assistant" and not message.masked and not _says_something(message):
        leftovers.note("an empty answer: the model learns to say nothing")
    if message.role in ("assistant", "system"):
        for tag in dict.fromkeys(tag for text in texts for tag in literal_tags(text)):
            leftovers.note(f"{tag} in a turn of role {message.role} is letters")


def _note_coordinates(messages: Sequence[Message], leftovers: Leftovers) -> None:
    answers = [message for message in messages if message.role == "assistant" and not message.masked]
    texts = [part["content"] for message in answers for part in message.content if part["type"] == "text"]
    if any(map(_COORDINATES.search, texts)):
        leftovers.note(
            "an answer spells out coordinates, which stay as they are; boxes in objects follow the image"
        )


def _says_something(message: Message) -> bool:
    return any(part["type"] != "text" or part["content"].strip() for part in message.content)
