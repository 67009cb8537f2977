"""Functions that pass arguments on: signature and docstring list them, misspelt ones are reported.

Builders call builders with the same dozen arguments. Repeated in every signature, they drift apart. A bare
`**kwargs` hides them from `help`, from the check of configs and from whoever misspells one.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from torchtune_qwenvl.docstrings import merged_docstring

T = TypeVar("T")


def takes_arguments_of(
    *others: Callable[..., Any], **defaults: Any
) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Replace the `**arguments` of a function by the keyword-only arguments of `others`.

        >>> @takes_arguments_of(plan_training)
        ... def build(config, *, loss_chunk_tokens=2048, **trainable): ...

    has the signature `(config, *, loss_chunk_tokens=2048, encoder_trainable="full", …)`, and its docstring
    describes them all: entries that its own "Args:" lacks are taken from the docstrings of `others`.

    Args:
        *others: functions, or classes with keyword-only arguments.
        **defaults: defaults that replace theirs. The function gets them if the caller gives nothing.

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
            raise TypeError(f"defaults for arguments that {others} do not take: {sorted(beyond)}")
        known = {**own, **passed}

        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> T:
            for name in kwargs.keys() - known.keys():
                raise TypeError(f"{checked.__qualname__} has no argument {name!r}.{nearest(name, known)}")
            return function(*args, **{**defaults, **kwargs})

        merged = signature.replace(parameters=_ordered(known.values()))
        checked.__signature__ = merged  # type: ignore[attr-defined]
        checked.__owners__ = {  # type: ignore[attr-defined]
            name: other
            for other in others
            for name in inspect.signature(other).parameters
            if name in passed and name not in own
        }
        checked.__doc__ = merged_docstring(function, merged.parameters, others)
        return checked

    return decorate


def passes_on(
    find: Callable[[], Iterable[Callable[..., Any]]],
) -> Callable[[Callable[..., T]], Callable[..., T]]:
    """Note on a function with `**arguments` to which functions these may go, for the check of configs.

    Args:
        find: lists the functions; called when a config is checked, since some are registered later.
    """

    def decorate(function: Callable[..., T]) -> Callable[..., T]:
        function.__passes_on_to__ = find  # type: ignore[attr-defined]
        return function

    return decorate


def passed_on(function: Callable[..., Any]) -> dict[str, Callable[..., Any]] | None:
    """Argument -> the function that it is passed on to, as `passes_on` notes; None if it notes none.

    What such a function cannot do without, its caller gives it: that is not passed on.
    """
    find = getattr(function, "__passes_on_to__", None)
    if find is None:
        return None
    return {
        name: other
        for other in find()
        for name, parameter in inspect.signature(other).parameters.items()
        if parameter.default is not parameter.empty or parameter.kind is parameter.VAR_KEYWORD
    }


def keyword_arguments(function: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the keyword-only arguments of a function or class."""
    parameters = inspect.signature(function).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


def type_hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Argument -> its type, also where a module writes types as text; without types that cannot be found.

    Args:
        function: a function or class, perhaps one of `takes_arguments_of`, whose types are those of the
            functions that get the arguments.
    """
    others = passed_on(function) or {}
    hints = {name: hint for other in set(others.values()) for name, hint in type_hints(other).items()}
    for name, parameter in inspect.signature(function).parameters.items():
        hint = parameter.annotation
        if isinstance(hint, str):
            hint = _evaluated(hint, _owner(function, name))
        if hint is not parameter.empty:
            hints[name] = hint
    return hints


def _owner(function: Callable[..., Any], argument: str) -> Callable[..., Any]:
    """The function that wrote down the type of an argument."""
    owners = getattr(function, "__owners__", {})
    return _owner(owners[argument], argument) if argument in owners else function


def _evaluated(hint: str, owner: Callable[..., Any]) -> Any:
    written = inspect.unwrap(owner.__init__ if inspect.isclass(owner) else owner)  # type: ignore[misc]
    try:
        return eval(hint, getattr(written, "__globals__", {}))
    except (NameError, TypeError, AttributeError, SyntaxError):  # imported for type checkers alone
        return inspect.Parameter.empty


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """` Did you mean '…'?` with the most similar of `known`, or an empty string."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f" Did you mean '{found[0]}'?" if found else ""


def _ordered(parameters: Iterable[inspect.Parameter]) -> list[inspect.Parameter]:
    return sorted(parameters, key=lambda parameter: parameter.kind)
