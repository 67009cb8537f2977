"""Read `key=value` and `~key` of a command line."""

from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from torchtune_qwenvl.arguments import nearest
from torchtune_qwenvl.settings.checks import SLOTS
from torchtune_qwenvl.settings.datasets import COMPONENT

REMOVE = object()


def parse_override(text: str) -> tuple[tuple[str, ...], Any]:
    """`a.b=1` -> (("a", "b"), 1); `~a.b` -> (("a", "b"), REMOVE)."""
    if text.startswith("~"):
        return tuple(text[1:].split(".")), REMOVE
    key, equals, _ = text.partition("=")
    if not equals or not key or key[0] in "+-":
        hint = key.lstrip("+-") or "key"
        raise ValueError(
            f"Expected overrides of the form key=value, got '{text}'. Write {hint}=VALUE, no prefix."
        )
    path = tuple(key.split("."))
    if not all(path):
        raise ValueError(f"Expected key=value with a key such as batch_size or optimizer.lr, got '{text}'.")
    value = _value(key, text)
    for part in path:
        value = value[part]
    return ((key, COMPONENT), value) if key in SLOTS and isinstance(value, str) else (path, value)


def _value(key: str, text: str) -> Any:
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([text]))
    except (YAMLError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"Config key '{key}': expected a value in YAML, got '{text}': {reason}") from error


def remove(tree: dict, path: tuple[str, ...]) -> dict:
    """A copy of `tree` without the key at `path`."""
    head, rest = path[0], path[1:]
    if not isinstance(tree, dict) or head not in tree:
        raise ValueError(f"Cannot remove '{head}': no such key.{nearest(head, tree or ())}")
    if rest:
        return {**tree, head: remove(tree[head], rest)}
    return {key: value for key, value in tree.items() if key != head}
