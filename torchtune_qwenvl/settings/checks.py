"""Check a merged config: every key is known, every component exists and takes its arguments."""

import inspect
import os
import sys
from collections.abc import Iterator
from typing import Any

from torchtune.config._errors import InstantiationError
from torchtune.config._utils import _get_component_from_path

from torchtune_qwenvl.arguments import nearest
from torchtune_qwenvl.settings.datasets import COMPONENT, OF_THE_MIX

# Keys that take a component: `optimizer=torch.optim.SGD` on the command line is short for
# `optimizer._component_=…`.
SLOTS = (
    *("model", "tokenizer", "dataset", "val_dataset"),
    *("loss", "optimizer", "lr_scheduler", "profiler", "metric_logger"),
)
# Keys that may be null although their default is not.
NULLABLE = ("keep_last_n",)
# Keys that are true, false, or a share from 0 to 1.
SHARES = ("activation_checkpointing.encoder", "activation_checkpointing.decoder")


def check_keys(schema: dict, tree: dict, prefix: str = "", base_name: str = "base.yaml") -> None:
    """Raise a ValueError for a key that `schema` lacks, or a value of another type than its default.

    Components may have any arguments here; `check_arguments` checks them.
    """
    for key, value in tree.items():
        name = prefix + str(key)
        if key not in schema:
            known = [path for path in _dotted(schema, prefix)]
            raise ValueError(
                f"Unknown config key '{name}'.{nearest(name, known)} {base_name} lists every key."
            )
        default = schema[key]
        if name in SLOTS:
            if value is not None and not (isinstance(value, dict) and COMPONENT in value):
                raise ValueError(f"Config key '{name}' takes a component: name one by {name}._component_=….")
        elif isinstance(default, dict) and isinstance(value, dict):
            check_keys(default, value, f"{name}.", base_name)
        elif name in SHARES and isinstance(value, (int, float)):
            continue
        elif not (value is None and name in NULLABLE) and not _fits(value, default):
            raise ValueError(f"Config key '{name}': expected a value like {default!r}, got {value!r}.")


def _fits(value: Any, default: Any) -> bool:
    if default is None or (isinstance(value, str) and "${" in value):
        return not isinstance(value, dict)
    if isinstance(default, bool) or isinstance(value, bool):
        # Strings are allowed, since `resume: false` also takes a folder.
        return isinstance(default, bool) and isinstance(value, (bool, str))
    if isinstance(default, (int, float)):
        return isinstance(value, (int, type(default)))
    return isinstance(value, type(default))


def _dotted(tree: dict, prefix: str) -> Iterator[str]:
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")


def components(node: Any, path: str = "") -> Iterator[tuple[str, dict]]:
    """Every node with a `_component_`, and its dotted path."""
    if isinstance(node, dict) and COMPONENT in node:
        yield path, node
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield from components(child, f"{path}.{key}".lstrip("."))


def check_arguments(path: str, node: dict) -> None:
    """Raise a ValueError unless a node's component can be imported and takes the node's arguments."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # for components of the user's, as torchtune's instantiate does
    try:
        component = _get_component_from_path(node[COMPONENT])
    except InstantiationError as error:
        raise ValueError(f"Config key '{path}': no component '{node[COMPONENT]}'. {error}") from error
    parameters = inspect.signature(component).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    of_the_mix = OF_THE_MIX if ".datasets." in path else set()
    for name in node.keys() - {COMPONENT} - of_the_mix - parameters.keys():
        hint = nearest(name, parameters)
        raise ValueError(f"Config key '{path}.{name}': {node[COMPONENT]} has no such argument.{hint}")


def check_function(path: str, name: str) -> None:
    """Raise a ValueError unless the config key `path` names a function that can be imported."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        found = _get_component_from_path(name)
    except InstantiationError as error:
        raise ValueError(f"Config key '{path}': nothing called '{name}'. {error}") from error
    if not callable(found):
        raise ValueError(f"Config key '{path}': expected a function, {name} is {found!r}")
