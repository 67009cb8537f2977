"""Group messages about samples into kinds: equal without their paths, quotations and numbers."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torchtune_qwenvl.counted import counted

_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|<[^<> ]+ [^<>]*>")
_PATH = re.compile(r"(?<![\w/])(?:[A-Za-z]:)?[^\s,;:()'\"/]*(?:/[^\s,;:()'\"]+)+")
_NUMBER = re.compile(r"\b\d[\d.,]*\b")
_SEVERAL = re.compile(r"…(?:, …)+")
_PLACE = re.compile(r"^.*?\b(?:sample \d+ \(from 0(?:; line \d+)?\)(?: of the dataset)?|line \d+): ")
_ADVICE = re.compile(r" \((?:[^()]|\([^()]*\))*\)$")


def masked(message: str) -> str:
    """A message without the parts that differ between samples.

    Example: "[1, 2] leaves the image /a/b.jpg, got 3" -> "[…] leaves the image …, got …".
    """
    for pattern, mark in ((_QUOTED, "'…'"), (_PATH, "…"), (_NUMBER, "…"), (_SEVERAL, "…")):
        message = pattern.sub(mark, message)
    return " ".join(message.split())


@dataclass(frozen=True)
class Kind:
    """Messages of one kind: how many samples have them, and the first of them."""

    count: int
    example: str


def by_kind(reasons: Mapping[str, int]) -> dict[str, Kind]:
    """Kind of a message, without place and advice, -> its samples.

    Args:
        reasons: whole message -> how many samples have it.
    """
    kinds: dict[str, Kind] = {}
    for reason, count in reasons.items():
        kind = masked(_ADVICE.sub("", _PLACE.sub("", reason)))
        first = kinds.get(kind, Kind(0, reason))
        kinds[kind] = Kind(first.count + count, first.example)
    return kinds


def skipped_lines(kinds: Mapping[str, Kind]) -> list[str]:
    """What was left out, the most frequent kind first: each kind with a real message."""
    ordered = sorted(kinds.items(), key=lambda entry: -entry[1].count)
    return [
        f"skipped {counted(of.count, 'sample')}: {f'{kind}; such as ' if of.count > 1 else ''}{of.example}"
        for kind, of in ordered
    ]
