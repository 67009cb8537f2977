"""Parsed records as plain values, for comparisons."""

from typing import Any

from torchtune.data import Message


def plain(messages: list[Message]) -> list[tuple[str, list[Any]]]:
    """Roles with their parts: text as it is, an image as ("image", source, limits), a video alike."""

    def part(entry: dict[str, Any]) -> Any:
        if entry["type"] == "text":
            return entry["content"]
        limits = {key: value for key, value in entry.items() if key not in ("type", "content")}
        return (entry["type"], entry["content"], limits) if limits else (entry["type"], entry["content"])

    return [(message.role, [part(entry) for entry in message.content]) for message in messages]
