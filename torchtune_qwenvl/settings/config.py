"""Configs: packaged names, `include:` lists, command-line overrides, and an error for every key nobody reads.

`configs/base.yaml` holds every key of the fine-tuning recipe with its default: it is the root of every config
and its schema. A config of another recipe names it (`recipe: train_vit`), see recipes.py. A config file
names its parents (`include: [_3B, _lora]`); later files win, key by key. A node that names another
`_component_` than its parent replaces it whole, so that no argument of the old component is left over.

    tune-qwenvl show qwen2_5_vl/3B_lora batch_size=2     prints it fully resolved
    tune-qwenvl show qwen2_5_vl/3B_lora --stock          for torchtune's own recipes
"""

import inspect
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torchtune.config._errors import InstantiationError
from torchtune.config._utils import _get_component_from_path

from torchtune_qwenvl.arguments import nearest
from torchtune_qwenvl.settings.datasets import (
    COMPONENT,
    DATASETS,
    MIXED,
    OF_THE_MIX,
    check_mix,
    with_component,
)
from torchtune_qwenvl.settings.recipes import DEFAULT, check_recipe, recipe_of, settings_of

PACKAGED = Path(str(files("torchtune_qwenvl.configs")))
# Keys that take a component: `optimizer=torch.optim.SGD` on the command line is short for
# `optimizer._component_=…`.
SLOTS = (
    *("model", "tokenizer", "dataset", "val_dataset"),
    *("optimizer", "lr_scheduler", "profiler", "metric_logger"),
)
# Keys with a default that may be null all the same.
NULLABLE = ("keep_last_n",)
_REMOVE = object()


def resolve(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The config called `name` (packaged, or a YAML file) over its base, with `key=value` overrides on top.

    Raises:
        ValueError: an unknown config, key or component argument, with the nearest known one; a malformed
            override.
    """
    own = load_config(find_config(name))
    recipe = settings_of(own)
    base = load_config(PACKAGED / recipe.base)
    merged = _merge(base, own)
    # Components first: `optimizer.lr=1 optimizer=torch.optim.SGD` must not lose the learning rate.
    for path, value in sorted(map(_parse_override, overrides), key=lambda edit: edit[0][-1] != COMPONENT):
        if value is _REMOVE:
            merged = _remove(merged, path)
            continue
        for part in reversed(path):
            value = {part: value}
        merged = _merge(merged, value)
    for slot in DATASETS:
        merged[slot] = with_component(merged[slot], recipe.dataset)
    _check_keys(base, merged, base_name=recipe.base)
    cfg = OmegaConf.create(merged)
    for where, node in _components(OmegaConf.to_container(cfg, resolve=True)):
        _check_arguments(where, node)
        if node[COMPONENT] == MIXED:
            check_mix(where, node)
    return cfg


def parse_arguments(argv: Sequence[str], recipe: str = DEFAULT) -> DictConfig:
    """A recipe's command line, `--config NAME [key=value ...]`, as a resolved config.

    Raises:
        ValueError: as `resolve`; a config of another recipe.
    """
    arguments = list(argv)
    if "--config" not in arguments[:-1]:
        raise ValueError(f"Expected --config NAME [key=value ...], got '{' '.join(arguments)}'.")
    at = arguments.index("--config")
    cfg = resolve(arguments[at + 1], arguments[:at] + arguments[at + 2 :])
    check_recipe(cfg, recipe)
    return cfg


def require(cfg: DictConfig, *keys: str) -> None:
    """Raise a ValueError for the first of these keys that is not set: base.yaml has no default for them."""
    for key in keys:
        if cfg[key] is None:
            example = f"{key}.source={settings_of(cfg).source}" if key in DATASETS else f"{key}=..."
            raise ValueError(f"Config key '{key}' is not set: give {example} or write it into the file.")


def packaged_names(recipe: str | None = None) -> list[str]:
    """The packaged configs to run, such as `qwen2_5_vl/3B_lora`, of one recipe or of all.

    `_x.yaml` are their building blocks.
    """
    paths = [path.relative_to(PACKAGED).with_suffix("") for path in PACKAGED.rglob("*.yaml")]
    names = (path.as_posix() for path in paths if path.name != "base" and not path.name.startswith("_"))
    return sorted(name for name in names if recipe in (None, recipe_of(name)))


def for_stock_recipe(cfg: DictConfig) -> DictConfig:
    """`cfg` with the keys that torchtune's `full_finetune_*` and `lora_finetune_*` recipes ask for.

    They know one learning rate, one checkpointing switch and no parts; validation, prepare and finish stay
    out.

    Raises:
        ValueError: a config of another recipe than `finetune`.
    """
    check_recipe(cfg, DEFAULT)
    ours = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(ours, dict)
    stock = {key: ours[key] for key in _SHARED_WITH_STOCK}
    stock["optimizer"] = {"lr": ours["learning_rates"]["decoder"], **ours["optimizer"]}
    stock["enable_activation_checkpointing"] = any(ours["activation_checkpointing"].values())
    stock["enable_activation_offloading"] = ours["activation_offloading"]
    stock["checkpointer"] = {
        COMPONENT: "torchtune_qwenvl.training.checkpointer.FolderCheckpointer",
        "checkpoint_dir": ours["checkpoint_dir"],
        "output_dir": ours["output_dir"],
        "model_type": None,  # the recipes look it up under activation checkpointing
    }
    stock["collate_fn"] = "torchtune_qwenvl.data.collate"
    stock["loss"] = {COMPONENT: "torchtune.modules.loss.CEWithChunkedOutputLoss"}
    switched_off = ("resume_from_checkpoint", "log_peak_memory_stats", "save_adapter_weights_only")
    stock |= dict.fromkeys(switched_off, False)
    return OmegaConf.create(stock)


_SHARED_WITH_STOCK = (
    *("output_dir", "seed", "device", "dtype", "model", "tokenizer", "dataset", "shuffle", "batch_size"),
    *("gradient_accumulation_steps", "epochs", "max_steps_per_epoch", "clip_grad_norm", "lr_scheduler"),
    *("metric_logger", "compile", "optimizer_in_bwd", "profiler"),
)


def find_config(name: str, beside: Path | None = None) -> Path:
    """The file called `name`: beside the file that includes it, a path of the user's, or packaged."""
    file_name = name if name.endswith((".yaml", ".yml")) else f"{name}.yaml"
    folders = [PACKAGED, Path()] if name != file_name else [Path(), PACKAGED]
    for folder in folders if beside is None else [beside, *folders]:
        if (folder / file_name).is_file():
            return folder / file_name
    known = packaged_names()
    raise ValueError(f"No config called '{name}'.{nearest(name, known)} Packaged ones: {', '.join(known)}.")


def load_config(path: Path, chain: tuple[Path, ...] = ()) -> dict:
    """One file over everything it includes, as a plain dict; interpolations stay as they are."""
    path = path.resolve()
    if path in chain:
        raise ValueError(f"Config {path} includes itself, through {' -> '.join(p.name for p in chain)}.")
    content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    if not isinstance(content, dict):
        raise ValueError(
            f"Config {path}: expected `key: value` lines at the top, got a {type(content).__name__}."
        )
    parents = content.pop("include", [])
    merged: dict = {}
    for parent in [parents] if isinstance(parents, str) else parents:
        merged = _merge(merged, load_config(find_config(parent, beside=path.parent), (*chain, path)))
    return _merge(merged, content)


def _merge(below: dict, above: dict) -> dict:
    """`above` over `below`, key by key; lists, and nodes of another component, are replaced whole."""
    if COMPONENT in above and above[COMPONENT] != below.get(COMPONENT, above[COMPONENT]):
        return dict(above)
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _parse_override(text: str) -> tuple[tuple[str, ...], Any]:
    """`a.b=1` -> (("a", "b"), 1); `~a.b` -> (("a", "b"), _REMOVE)."""
    if text.startswith("~"):
        return tuple(text[1:].split(".")), _REMOVE
    key, equals, _ = text.partition("=")
    if not equals or not key or key[0] in "+-":
        hint = key.lstrip("+-") or "key"
        raise ValueError(
            f"Expected overrides of the form key=value, got '{text}'. Write {hint}=VALUE, no prefix."
        )
    path = tuple(key.split("."))
    value: Any = OmegaConf.to_container(OmegaConf.from_dotlist([text]))
    for part in path:
        value = value[part]
    return ((key, COMPONENT), value) if key in SLOTS and isinstance(value, str) else (path, value)


def _remove(tree: dict, path: tuple[str, ...]) -> dict:
    head, rest = path[0], path[1:]
    if not isinstance(tree, dict) or head not in tree:
        raise ValueError(f"Cannot remove '{head}': no such key.{nearest(head, tree or ())}")
    if rest:
        return {**tree, head: _remove(tree[head], rest)}
    return {key: value for key, value in tree.items() if key != head}


def _check_keys(schema: dict, tree: dict, prefix: str = "", base_name: str = "base.yaml") -> None:
    """Every key of `tree` stands in `schema`, with a value like the default; components are free."""
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
            _check_keys(default, value, f"{name}.", base_name)
        elif not (value is None and name in NULLABLE) and not _fits(value, default):
            raise ValueError(f"Config key '{name}': expected a value like {default!r}, got {value!r}.")


def _fits(value: Any, default: Any) -> bool:
    if default is None or (isinstance(value, str) and "${" in value):
        return not isinstance(value, dict)
    if isinstance(default, bool) or isinstance(value, bool):
        # `resume: false` also takes a folder, hence strings.
        return isinstance(default, bool) and isinstance(value, (bool, str))
    if isinstance(default, (int, float)):
        return isinstance(value, (int, type(default)))
    return isinstance(value, type(default))


def _dotted(tree: dict, prefix: str) -> Iterator[str]:
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")


def _components(node: Any, path: str = "") -> Iterator[tuple[str, dict]]:
    """Every node with a `_component_`, with its dotted path."""
    if isinstance(node, dict) and COMPONENT in node:
        yield path, node
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in children:
        yield from _components(child, f"{path}.{key}".lstrip("."))


def _check_arguments(path: str, node: dict) -> None:
    """The component can be imported and takes every argument that the node gives."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # as torchtune's instantiate: the user's own components
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


def main(argv: Sequence[str]) -> None:
    """Print the config called argv[0] with the overrides that follow it, fully resolved, as YAML."""
    arguments = [text for text in argv if text != "--stock"]
    if not arguments:
        raise SystemExit(f"{__doc__}\nPackaged configs: {', '.join(packaged_names())}")
    cfg = resolve(arguments[0], arguments[1:])
    print(OmegaConf.to_yaml(for_stock_recipe(cfg) if "--stock" in argv else cfg, resolve=True), end="")


if __name__ == "__main__":
    main(sys.argv[1:])
