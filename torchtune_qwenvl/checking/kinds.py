"""Group errors into kinds: messages that are equal without their paths, quotations and numbers."""

import re

from torchtune_qwenvl.transforms.errors import BadSample

_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|<[^<> ]+ [^<>]*>")
_PATH = re.compile(r"(?<![\w/])(?:[A-Za-z]:)?[^\s,;:()'\"/]*(?:/[^\s,;:()'\"]+)+")
_NUMBER = re.compile(r"\b\d[\d.,]*\b")


def kind_of(error: BaseException) -> str:
    """The kind of an error that a dataset raised for a sample.

    This is the innermost BadSample's message: the errors around it only add the place and the advice.
    """
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    bad = [link.what for link in chain if isinstance(link, BadSample)]
    if bad:
        return masked(bad[-1])
    return masked(f"{type(chain[-1]).__name__}: {chain[-1]}")


def masked(message: str) -> str:
    """A message without the parts that differ between samples.

    Example: "expected an image file at /a/b.jpg, got 3" -> "expected an image file at …, got N".
    """
    for pattern, mark in ((_QUOTED, "'…'"), (_PATH, "…"), (_NUMBER, "N")):
        message = pattern.sub(mark, message)
    return " ".join(message.split())
