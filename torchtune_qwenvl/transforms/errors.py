"""The errors of a sample that cannot be used. All of them are raised as one of these two.

    BadSample        a record, image or video that cannot be turned into a training example
    SampleTooLong    a sound sample that does not fit into max_seq_len, not even truncated

Both are ValueErrors whose only argument is the finished message, so they can be pickled. What found the
fault names its part of the sample (`where`, `at`). The dataset puts file and number in front, once
(`locate`). A `SkippedSample` in `data/samples.py` is not an error but a sample left out, with its message.
"""

from __future__ import annotations

import math
import os
import reprlib
import sys
from collections.abc import Callable, Sequence
from traceback import extract_tb
from typing import Any

MAX_RATE = 10_000.0  # frames per second; above it, sampling by time would take forever


class BadSample(ValueError):
    """A sample that cannot be turned into a training example.

    Args:
        what: what was expected and what came.
        where: the file, message or part at fault, put in front.
        fix: what the user can do, put at the end.

    Attributes:
        what: as given, without place and advice: the same for all errors of one kind.
        located: whether the message already names the sample's file and number.
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        place = f"{where}: " if where else ""
        advice = f" ({fix})" if fix else ""
        message = f"{place}{what}{advice}"
        # Half of a character in a record could not be printed or logged.
        super().__init__(message.encode("utf-8", "backslashreplace").decode())
        self.what = what
        self.located = False

    def at(self, where: str) -> BadSample:
        """The same error, of the same class, with `where` in front."""
        placed = type(self)(str(self), where=where)
        placed.what, placed.located = self.what, self.located
        return placed


class SampleTooLong(BadSample):
    """A sample that does not fit into `max_seq_len`, even after the truncation policy was applied."""


def locate(error: Exception, where: Callable[[], str]) -> BadSample:
    """The error as a BadSample whose message begins with the sample's place.

    Args:
        error: whatever a dataset raised; one that is located already is returned as it is. An error that is
            no ValueError or OSError was not foreseen: the message says where in the code it came from.
        where: gives file and number; only called if they are needed.
    """
    if isinstance(error, BadSample) and error.located:
        return error
    located = (error if isinstance(error, BadSample) else BadSample(_said(error))).at(where())
    located.located = True
    return located


def _said(error: Exception) -> str:
    """The message of an error; of one that nobody raised on purpose, also its type and the line of code."""
    if isinstance(error, (ValueError, OSError)) and not isinstance(error, UnicodeError):
        return str(error) or type(error).__name__
    lines = extract_tb(error.__traceback__)
    own = [line for line in lines if f"{os.sep}{__package__.partition('.')[0]}{os.sep}" in line.filename]
    place = ""
    if last := (own or lines)[-1:]:
        place = f" (an error of the code, at {last[0].filename}:{last[0].lineno} in {last[0].name})"
    return f"{type(error).__name__}: {error}{place}"


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
        raise BadSample(
            f"expected {name} to be a positive number, at most {MAX_RATE:,.0f}, got {reprlib.repr(value)}"
        )


def check_seconds(name: str, value: Any) -> None:
    """BadSample unless `value`, called `name`, is a finite number or None."""
    if value is not None and not _is_number(value):
        raise BadSample(f"expected {name} to be a number of seconds, got {reprlib.repr(value)}")


def _is_number(value: Any) -> bool:
    # A whole number may have more digits than a float can hold.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < sys.float_info.max if isinstance(value, int) else math.isfinite(value)
