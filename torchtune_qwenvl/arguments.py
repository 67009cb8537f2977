"""Functions that hand arguments on: their signature says so, and misspelt ones are told.

Builders call builders with the same dozen arguments. Repeating these in every signature drifts apart, and a
bare `**kwargs` hides them from `help`, from the check of configs and from whoever misspells one.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

T = TypeVar("T")


def takes_arguments_of(
    *others: Callable[..., Any], **defaults: Any
) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Let the `**arguments` of a function stand for the keyword arguments of `others`.

        >>> @takes_arguments_of(plan_training)
        ... def build(config, *, loss_chunk_tokens=2048, **trainable): ...

    has the signature `(config, *, loss_chunk_tokens=2048, encoder_trainable="full", …)`.

    Args:
        *others: functions, or classes with keyword-only arguments.
        **defaults: other defaults than theirs, handed to the function where a caller gives nothing.

    Raises:
        TypeError: in a call, for an argument that is not in the signature; it names the nearest one.
    """

    def decorate(function: Callable[..., T]) -> Callable[..., T]:
        signature = inspect.signature(function)
        own = {n: p for n, p in signature.parameters.items() if p.kind is not p.VAR_KEYWORD}
        passed = {
            name: parameter.replace(default=defaults.get(name, parameter.default))
            for other in others
            for name, parameter in inspect.signature(other).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY and name not in own
        }
        if beyond := defaults.keys() - passed.keys():
            raise TypeError(f"defaults for what {others} do not take: {sorted(beyond)}")
        known = {**own, **passed}

        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> T:
            for name in kwargs.keys() - known.keys():
                raise TypeError(f"{checked.__qualname__} has no argument {name!r}.{nearest(name, known)}")
            return function(*args, **{**defaults, **kwargs})

        checked.__signature__ = signature.replace(parameters=_ordered(known.values()))  # type: ignore[attr-defined]
        return checked

    return decorate


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean '…'?` with the most similar of `known`, or nothing."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{found[0]}'?" if found else ""


def _ordered(parameters: Iterable[inspect.Parameter]) -> list[inspect.Parameter]:
    return sorted(parameters, key=lambda parameter: parameter.kind)
