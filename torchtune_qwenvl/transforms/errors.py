"""What a transform raises when a sample cannot be used.

Both are ValueErrors with one finished sentence as their only argument, so that they travel unchanged out of
worker processes; whoever knows more (the dataset knows the sample's number) raises a new one with `at`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

MAX_RATE = 10_000.0  # frames per second; beyond it a rule that counts by the clock would never end


class BadSample(ValueError):
    """A sample that cannot be turned into a training example.

    Args:
        what: what was expected and what came.
        where: the file, message or part at fault, put in front.
        fix: what the user can do, put behind.

    Attributes:
        what: as given, without place and advice: errors of one kind are alike in it. It stays in its process.
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        front = f"{where}: " if where else ""
        behind = f" ({fix})" if fix else ""
        super().__init__(f"{front}{what}{behind}")
        self.what = what

    def at(self, where: str) -> BadSample:
        """The same error, of the same class, with `where` in front."""
        located = type(self)(str(self), where=where)
        located.what = self.what
        return located


class SampleTooLong(BadSample):
    """A sample that does not fit into `max_seq_len`, not even after what the policy allows to leave out."""


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
    """Raise a BadSample unless `value`, frames per second called `name`, is above 0 and at most MAX_RATE."""
    if not (_is_number(value) and 0 < value <= MAX_RATE):
        raise BadSample(f"{name} is a positive number, at most {MAX_RATE:,.0f}, got {value!r}")


def check_seconds(name: str, value: Any) -> None:
    """Raise a BadSample unless `value`, called `name`, is a finite number or None."""
    if value is not None and not _is_number(value):
        raise BadSample(f"{name} is a number of seconds, got {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
