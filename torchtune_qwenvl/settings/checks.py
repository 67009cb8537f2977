"""Check a merged config: every key is known and in its range, every component takes its arguments."""

import inspect
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from torchtune.config._errors import InstantiationError
from torchtune.config._utils import _get_component_from_path

from torchtune_qwenvl.arguments import nearest, passed_on, type_hints
from torchtune_qwenvl.settings.datasets import COMPONENT, DATASETS, OF_THE_MIX
from torchtune_qwenvl.settings.keys import argument_kind
from torchtune_qwenvl.settings.kinds import Kind, kind_of_hint

# Keys that take a component: `optimizer=torch.optim.SGD` on the command line is short for
# `optimizer._component_=…`.
SLOTS = (
    *("model", "tokenizer", "dataset", "val_dataset"),
    *("loss", "optimizer", "lr_scheduler", "profiler", "metric_logger"),
)  # Arguments that recipes give by name: to `mixes`, and to `lr_scheduler`.
_BY_NAME = ("num_classes", "num_training_steps")

# Loggers of torchtune's that do nothing with the keywords that their signatures do not name.
_SWALLOWING = ("DiskLogger", "TensorBoardLogger")


def check_keys(schema: dict, tree: dict, prefix: str = "", base_name: str = "base.yaml") -> None:
    """Raise a ValueError for a key that `schema` lacks or that is missing. Components may hold any."""
    for key, value in tree.items():
        name = prefix + str(key)
        if key not in schema:
            known = [path for path in _dotted(schema, prefix)]
            raise ValueError(
                f"Unknown config key '{name}'.{nearest(name, known)} {base_name} lists every key."
            )
        default = schema[key]
        if name in SLOTS or not isinstance(default, dict):
            continue
        if isinstance(value, dict):
            check_keys(default, value, f"{name}.", base_name)
        elif not _is_open(value):
            raise ValueError(f"Config key '{name}': expected the keys {', '.join(default)}, got {value!r}.")
    if missing := [key for key in schema if key not in tree]:
        raise ValueError(
            f"Config key '{prefix}{missing[0]}' was removed: ~ removes arguments of components only. "
            f"{base_name} has the key's default."
        )


def _is_open(value: Any) -> bool:
    """Whether a value is an interpolation, which is known only once it is resolved."""
    return isinstance(value, str) and "${" in value


def _dotted(tree: dict, prefix: str) -> Iterator[str]:
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")


def check_values(kinds: Mapping[str, Kind], tree: Mapping[str, Any], prefix: str = "") -> None:
    """Raise a ValueError for the first value, without interpolations, that is not what `kinds` says."""
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if name in kinds:
            kinds[name].check(name, value)
        elif isinstance(value, dict):
            check_values(kinds, value, f"{name}.")


def components(node: Any, path: str = "") -> Iterator[tuple[str, dict]]:
    """Every node with a `_component_`, and its dotted path."""
    if isinstance(node, dict) and COMPONENT in node:
        yield path, node
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield from components(child, f"{path}.{key}".lstrip("."))


def check_arguments(path: str, node: dict, by_position: Mapping[str, int]) -> None:
    """Raise a ValueError unless a node's component can be imported and takes the node's arguments.

    Args:
        path: of the node, dotted.
        node: its `_component_` and arguments, without interpolations.
        by_position: as of `needed_arguments`.
    """
    component = find_component(path, node[COMPONENT])
    given = {name: value for name, value in node.items() if name != COMPONENT}
    if ".datasets." in path:
        given = {name: value for name, value in given.items() if name not in OF_THE_MIX}
    _check_names(path, node[COMPONENT], component, given, needed_arguments(path, node, by_position))
    hints = type_hints(component)
    for name, value in given.items():
        kind = argument_kind(path.partition(".")[0], node[COMPONENT], name) or kind_of_hint(hints.get(name))
        if kind is not None:
            kind.check(f"{path}.{name}", value)


def _check_names(
    path: str, written: str, component: Callable[..., Any], given: Mapping[str, Any], needed: Sequence[str]
) -> None:
    """Raise a ValueError for an argument that the component does not take.

    A name that is like no other one was probably meant for the only argument that is missing.
    """
    takes = _takes(component)
    for name in given:
        if takes is not None and name not in takes:
            meant = f" Did you mean '{needed[0]}'?" if len(needed) == 1 else nearest(name, takes)
            hint = nearest(name, takes, cutoff=0.8) or meant
            raise ValueError(
                f"Config key '{path}.{name}': {written} has no such argument."
                f"{hint} ~{path}.{name} removes it."
            )


def needed_arguments(path: str, node: dict, by_position: Mapping[str, int]) -> list[str]:
    """The arguments that a node's component needs and gets neither from the node nor from the recipe.

    Args:
        path: of the node, dotted.
        node: its `_component_` and arguments.
        by_position: key -> how many arguments the recipe gives its component by position.
    """
    parameters = _signature(find_component(path, node[COMPONENT])).values()
    given = _given(path, by_position)
    listed = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    # Where it is not known who calls a component, and with what, its positional arguments are let be.
    asked = [*([] if given is None else listed[given:]), *(p for p in parameters if p.kind is p.KEYWORD_ONLY)]
    named = {*node, *_BY_NAME}
    return [p.name for p in asked if p.default is p.empty and p.name not in named]


def _given(path: str, by_position: Mapping[str, int]) -> int | None:
    """How many arguments the component at `path` gets by position; None if that is not known."""
    slot, *inner = [part for part in path.split(".") if not part.isdigit()]
    if not inner or (slot in DATASETS and inner == ["datasets"]):
        return by_position.get(slot)
    return None


def _signature(component: Any) -> Mapping[str, inspect.Parameter]:
    """The parameters of a component; none that are known of a few functions written in C."""
    try:
        return inspect.signature(component).parameters
    except ValueError:
        return {"args": inspect.Parameter("args", inspect.Parameter.VAR_KEYWORD)}


def _takes(component: Any) -> Collection[str] | None:
    """The arguments that a component takes, also through keywords that it passes on; None: anything."""
    parameters = _signature(component)
    rest = next((name for name, p in parameters.items() if p.kind is p.VAR_KEYWORD), None)
    if rest is None or getattr(component, "__qualname__", "") in _SWALLOWING:
        return parameters.keys() - {rest}
    if rest == "load_dataset_kwargs":  # as our datasets and torchtune's call them
        from torchtune_qwenvl.data.records.load_arguments import load_arguments  # brings datasets

        return parameters.keys() | load_arguments()
    passed = passed_on(component)
    return None if passed is None else parameters.keys() | passed.keys()


def takes_by_name(component: Any) -> set[str]:
    """The arguments that a component's signature names, or the functions it passes them on to."""
    named = {name for name, p in _signature(component).items() if p.kind is not p.VAR_KEYWORD}
    return named | set(passed_on(component) or ())


def find_component(path: str, name: str) -> Any:
    """What the config key `path` names by a dotted path.

    Raises:
        ValueError: nothing of this name can be imported.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for components of the user's, as torchtune's instantiate does
    try:
        found = _get_component_from_path(name)
    except (InstantiationError, ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"Config key '{path}': no component '{name}'. {error}") from error
    if not callable(found):
        raise ValueError(f"Config key '{path}': expected a function or class, {name} is {found!r}.")
    return found
