"""The errors that a transform raises for a sample that cannot be used.

Both are ValueErrors whose only argument is the finished message, so they can be pickled and leave worker
processes unchanged. A caller that knows more (the dataset knows the sample's number) adds it with `at`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

MAX_RATE = 10_000.0  # frames per second; above it, sampling by time would take forever


class BadSample(ValueError):
    """A sample that cannot be turned into a training example.

    Args:
        what: what was expected and what came.
        where: the file, message or part at fault; the message begins with it.
        fix: what the user can do; added in parentheses at the end.

    Attributes:
        what: as given, without `where` and `fix`, so that errors can be grouped by it. Lost in pickling.
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        prefix = f"{where}: " if where else ""
        suffix = f" ({fix})" if fix else ""
        super().__init__(f"{prefix}{what}{suffix}")
        self.what = what

    def at(self, where: str) -> BadSample:
        """The same error, of the same class, with `where` before its message."""
        located = type(self)(str(self), where=where)
        located.what = self.what
        return located


class SampleTooLong(BadSample):
    """A sample that is longer than `max_seq_len`, even after the truncation that the policy allows."""


def check_trainable(mask: Sequence[bool], fix: str) -> None:
    """Raise a BadSample with the advice `fix` if no token is trained on.

    Args:
        mask: True = not trained on. The first token does not count: it is never predicted.
        fix: what the user can do.
    """
    if all(mask[1:]):
        raise BadSample(
            "nothing to train on: expected an assistant turn that is not masked, got none", fix=fix
        )


def check_rate(name: str, value: Any) -> None:
    """BadSample unless `value`, the frame rate called `name`, is above 0 and at most MAX_RATE."""
    if not (_is_number(value) and 0 < value <= MAX_RATE):
        raise BadSample(f"expected {name} to be a positive number, at most {MAX_RATE:,.0f}, got {value!r}")


def check_seconds(name: str, value: Any) -> None:
    """BadSample unless `value`, called `name`, is a finite number or None."""
    if value is not None and not _is_number(value):
        raise BadSample(f"expected {name} to be a number of seconds, got {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
