"""Which arguments `datasets.load_dataset` takes. Its own `**config_kwargs` would swallow a misspelt one."""

import inspect
from collections.abc import Collection, Iterable
from dataclasses import fields
from functools import lru_cache
from importlib import import_module
from typing import Any

import datasets
from datasets import packaged_modules

from torchtune_qwenvl.arguments import nearest


@lru_cache
def load_arguments() -> frozenset[str]:
    """Its parameters, and the options of the builders that come with `datasets` (csv's `sep`, …)."""
    names = {
        name
        for name, parameter in inspect.signature(datasets.load_dataset).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD
    }
    for path, _ in packaged_modules._PACKAGED_DATASETS_MODULES.values():
        for found in vars(import_module(path)).values():
            if isinstance(found, type) and issubclass(found, datasets.BuilderConfig):
                names |= {field.name for field in fields(found)}
    return frozenset(names)


def check_load_arguments(given: Iterable[str], known: Collection[str] = ()) -> None:
    """Raise a ValueError for an argument that neither `datasets.load_dataset` nor the caller takes.

    Args:
        given: names.
        known: what the caller takes itself, to suggest from.
    """
    takes = load_arguments()
    for name in given:
        if name not in takes:
            raise ValueError(
                f"a dataset has no argument '{name}', nor has datasets.load_dataset."
                f"{nearest(name, {*takes, *known})}"
            )


def check_unused(given: Collection[str], reader: Any) -> None:
    """Raise a ValueError for arguments of `datasets.load_dataset` with a source that it does not read."""
    if given:
        raise ValueError(
            f"{', '.join(sorted(given))}: arguments of datasets.load_dataset, which does not read {reader}. "
            "Leave them out."
        )
