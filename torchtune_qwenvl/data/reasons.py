"""Group messages about samples into kinds: equal without their paths, quotations and numbers."""

import re

_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|<[^<> ]+ [^<>]*>")
_PATH = re.compile(r"(?<![\w/])(?:[A-Za-z]:)?[^\s,;:()'\"/]*(?:/[^\s,;:()'\"]+)+")
_NUMBER = re.compile(r"\b\d[\d.,]*\b")


def masked(message: str) -> str:
    """A message without the parts that differ between samples.

    Example: "expected an image file at /a/b.jpg, got 3" -> "expected an image file at …, got N".
    """
    for pattern, mark in ((_QUOTED, "'…'"), (_PATH, "…"), (_NUMBER, "N")):
        message = pattern.sub(mark, message)
    return " ".join(message.split())
