"""Docstrings of functions that pass arguments on: one "Args:" section for the whole signature.

    Builds a model.

    Args:
        config: a parsed config.json.             <- own entry
        lora_rank: rank of the adapters.          <- entry of the function that gets the argument

An entry may describe several arguments: `min_pixels, max_pixels: limits of the resized area.`
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

_SECTIONS = re.compile(r"^(Attributes|Returns|Yields|Raises|Example|Examples):", re.MULTILINE)
_ENTRY = re.compile(r"^    (?P<names>[*\w][*\w, \n]*?): ", re.MULTILINE)


@dataclass(frozen=True)
class Docstring:
    """A docstring in three: the text before its "Args:", the entries by argument names, what follows."""

    before: str
    entries: dict[tuple[str, ...], str]
    after: str

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Docstring:
        """That of a function or class."""
        text = inspect.cleandoc(function.__doc__ or "")
        before, found, rest = ("\n" + text).partition("\nArgs:\n")
        if not found:
            section = _SECTIONS.search(text)
            place = section.start() if section else len(text)
            return cls(text[:place].strip(), {}, text[place:].strip())
        section = _SECTIONS.search(rest)
        place = section.start() if section else len(rest)
        return cls(before.strip(), _entries(rest[:place]), rest[place:].strip())

    def entry(self, name: str) -> tuple[tuple[str, ...], str] | None:
        """(names, text) of the entry that describes an argument."""
        return next(((names, text) for names, text in self.entries.items() if name in names), None)


def merged_docstring(
    function: Callable[..., Any], parameters: Iterable[str], others: Iterable[Callable[..., Any]]
) -> str:
    """The docstring of `function`, in which "Args:" describes each of `parameters` if any docstring does.

    Args:
        function: its own entries come first.
        parameters: names in the order of the signature.
        others: the functions or classes that get the arguments which `function` passes on.
    """
    own, sources = Docstring.of(function), [Docstring.of(other) for other in others]
    parameters = list(parameters)
    written: set[str] = set()
    lines = []
    for name in parameters:
        found = next((entry for doc in (own, *sources) if (entry := doc.entry(name))), None)
        if name in written or found is None:
            continue
        names = [n for n in found[0] if n in parameters and n not in written]
        written.update(names)
        lines.append(f"    {', '.join(names)}: {found[1]}")
    # Without a first line, the newline keeps `inspect.cleandoc` from removing the entries' indentation.
    sections = [own.before or "\n", "\n".join(["Args:", *lines]) if lines else "", own.after]
    return "\n\n".join(section for section in sections if section)


def _entries(text: str) -> dict[tuple[str, ...], str]:
    starts = list(_ENTRY.finditer(text))
    ends = [start.start() for start in starts[1:]] + [len(text)]
    return {
        tuple(re.split(r"[,\s]+", start["names"].strip())): text[start.end() : end].rstrip()
        for start, end in zip(starts, ends, strict=True)
    }
