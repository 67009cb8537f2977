"""`<image>` and `<video>` in a text: places of the record's images and videos, in all styles."""

import re
from collections.abc import Mapping
from typing import Any

from torchtune_qwenvl.data.records.parts import KINDS, Pools
from torchtune_qwenvl.transforms.errors import BadSample

TAGS = {kind.tag: kind for kind in KINDS.values()}
_TAG = re.compile(f"({'|'.join(TAGS)})")
# What other programs write in their place: <image_0>, <image 1>, <Image>, <|video|>, <img>.
_LIKE_A_TAG = re.compile(r"<\|?\s*(image|img|video)s?[ _-]?\d*\s*[/|]?>", re.IGNORECASE)
_AS_TEXT = 'if the letters are meant, write them as {"type": "text", "text": "…"} in a list of parts'


def has_tag(text: str, kind: str) -> bool:
    """Whether a text has a tag of "image" or "video"."""
    return KINDS[kind].tag in text


def literal_tags(text: str) -> list[str]:
    """The tags in a text that is not a question, where they are letters."""
    return [tag for tag in TAGS if tag in text]


def split_tags(text: str, pools: Pools, where: str) -> list[dict[str, Any]]:
    """Split a text at its ``<image>`` and ``<video>`` tags; the next image or video replaces each.

    Example: ``"<image>\\nWhat is it? "`` with the image a.jpg gives image a.jpg, then text "What is it?".

    Args:
        text: of a question, or of a tool's result.
        pools: the record's images and videos, in order.
        where: the turn, for messages.

    Returns:
        Content parts. Text is stripped, as the Qwen team's trainer does; empty text is left out, unless it
        would be the only part.

    Raises:
        BadSample: more tags than images or videos, or something that looks like a tag in a record with
            images or videos.
    """
    parts: list[dict[str, Any]] = []
    for piece in _TAG.split(text):
        if piece in TAGS:
            kind = TAGS[piece].name
            fix = f"add the missing {kind}s or remove the tags; {_AS_TEXT}"
            parts.append(pools[kind].take(where, f"{piece} tags", fix))
        elif piece.strip():
            parts.append({"type": "text", "content": piece.strip()})
    return parts or [{"type": "text", "content": ""}]


def places_in(text: str, pools: Pools, where: str) -> list[dict[str, Any]]:
    """The parts of a text, which stays exactly as it is if it has no tag."""
    check_like_tags(text, pools, where)
    return split_tags(text, pools, where) if _TAG.search(text) else [{"type": "text", "content": text}]


def check_like_tags(text: str, pools: Pools, where: str) -> None:
    """Raise a BadSample for ``<image_0>`` and the like in a record with images or videos."""
    found = next((m[0] for m in _LIKE_A_TAG.finditer(text) if m[0] not in TAGS), None)
    if found and any(len(pool) for pool in pools.values()):
        raise BadSample(f"{found} is not a tag, but letters", where=where, fix=f"write <image>; {_AS_TEXT}")


def with_rest_in_front(pools: Pools, questions: list[str]) -> list[dict[str, Any]]:
    """The images and videos that no tag in the questions places, as parts for the start of the first one."""
    kinds: Mapping[str, Any] = {name: pool for name, pool in pools.items()}
    untagged = [pool for name, pool in kinds.items() if not any(has_tag(text, name) for text in questions)]
    return [part for pool in untagged for part in pool.take_all()]
