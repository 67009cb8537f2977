"""Read a config: base.yaml, then the file, then overrides of the command line. Unknown keys are errors.

`configs/base.yaml` lists every key of the fine-tuning recipe with its default. A config of another recipe
names that recipe (`recipe: train_vit`), see recipes.py. A config file can include others
(`include: [_3B, _lora]`); later files override earlier ones, key by key. If a node names another
`_component_`, the arguments that were written for the old one stay: the new one takes them, or they are
refused by name. Of base.yaml's own arguments those stay that the new component takes, of the optimizer's
none. keys.py says what each key takes.

    tune-qwenvl show qwen2_5_vl/3B_lora batch_size=2     prints a config with all its keys
    tune-qwenvl show qwen2_5_vl/3B_lora --stock          for torchtune's own recipes
"""

import sys
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from torchtune_qwenvl.settings.checks import (
    check_arguments,
    check_keys,
    check_values,
    components,
    find_component,
    needed_arguments,
)
from torchtune_qwenvl.settings.datasets import (
    COMPONENT,
    DATASETS,
    MIXED,
    check_mix,
    with_component,
    with_folder,
)
from torchtune_qwenvl.settings.exclusions import check_exclusions
from torchtune_qwenvl.settings.files import (
    PACKAGED,
    find_config,
    load_config,
    merge,
    over_defaults,
    packaged_names,
)
from torchtune_qwenvl.settings.help import help_text
from torchtune_qwenvl.settings.overrides import REMOVE, parse_override, remove
from torchtune_qwenvl.settings.recipes import DEFAULT, RecipeSettings, check_recipe, settings_of
from torchtune_qwenvl.settings.stock import for_stock_recipe


def resolve(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Read a config: the defaults of its recipe, then the file, then overrides.

    Args:
        name: a packaged config (`qwen2_5_vl/3B_lora`) or a YAML file.
        overrides: `key=value`; `~key` removes an argument of a component.

    Raises:
        ValueError: an unknown config, key or argument of a component, with the most similar known one; a
            value of another type or out of its range; a malformed override.
    """
    written, removed = load_config(find_config(name)), []
    # Components first, so that `optimizer.lr=1 optimizer=torch.optim.SGD` keeps the learning rate.
    for path, value in sorted(map(parse_override, overrides), key=lambda edit: edit[0][-1] != COMPONENT):
        if value is REMOVE:
            removed.append(path)
            continue
        for part in reversed(path):
            value = {part: value}
        written = merge(written, value)
    recipe = settings_of(written)
    base = load_config(PACKAGED / recipe.base)
    written["model"] = with_folder(written.get("model"))
    for slot in DATASETS:
        written[slot] = with_component(written.get(slot), recipe.dataset)
    merged = over_defaults(base, written)
    for path in removed:
        merged = remove(merged, path)
    check_keys(base, merged, base_name=recipe.base)
    cfg = OmegaConf.create(merged)
    _check(recipe, _resolved(cfg))
    return cfg


def _resolved(cfg: DictConfig) -> dict[str, Any]:
    """The config as a plain dict without interpolations."""
    try:
        return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"Config key '{error.full_key}': {reason}") from error


def _check(recipe: RecipeSettings, values: dict[str, Any]) -> None:
    """Raise a ValueError for a value, a component or an argument that does not fit."""
    for where, node in components(values):
        if node[COMPONENT] == MIXED:
            check_mix(where, node)
    check_values(recipe.kinds, values)
    for where, node in components(values):
        check_arguments(where, node, recipe.by_position)
    for key in recipe.functions:
        find_component(key, values[key])


def parse_arguments(argv: Sequence[str], recipe: str = DEFAULT) -> DictConfig:
    """Read the config that a recipe's command line names: `--config NAME [key=value ...]`.

    Raises:
        SystemExit: after `--help`, which prints every key.
        ValueError: as `resolve`; a config of another recipe, a key that has to be set and is not, or settings
            that exclude each other.
    """
    arguments = list(argv)
    if "--help" in arguments or "-h" in arguments:
        print(help_text(recipe))
        raise SystemExit(0)
    if "--config" not in arguments[:-1]:
        raise ValueError(f"Expected --config NAME [key=value ...], got '{' '.join(arguments)}'.")
    at = arguments.index("--config")
    cfg = resolve(arguments[at + 1], arguments[:at] + arguments[at + 2 :])
    check_recipe(cfg, recipe)
    check_start(cfg)
    return cfg


def check_start(cfg: DictConfig) -> None:
    """Raise a ValueError if a run of this config cannot start: a key is not set, or settings contradict."""
    require(cfg, *needed_keys(cfg))
    if absent := unset_arguments(cfg):
        raise ValueError(f"Config key {absent[0]}")
    check_exclusions(cfg)


def require(cfg: DictConfig, *keys: str) -> None:
    """Raise a ValueError for the first of these keys that has no value; base.yaml has no default for them."""
    if absent := unset(cfg, *keys):
        raise ValueError(f"Config key {absent[0]} or write it into the file.")


def needed_keys(cfg: DictConfig) -> list[str]:
    """The keys without a default that a run of this config needs."""
    from_folder = "${checkpoint_dir}" in OmegaConf.to_yaml(cfg.model or {})
    return [*settings_of(cfg).needed, *["checkpoint_dir"] * from_folder]


def unset(cfg: DictConfig, *keys: str) -> list[str]:
    """Those of the keys that have no value, each with an example."""
    source = settings_of(cfg).source
    examples = {key: f"{key}.source={source}" if key in DATASETS else f"{key}=..." for key in keys}
    return [f"'{key}' is not set: give {example}" for key, example in examples.items() if cfg[key] is None]


def unset_arguments(cfg: DictConfig) -> list[str]:
    """The arguments that components need and do not get, each with an example."""
    return [
        f"'{where}.{name}' is not set: {node[COMPONENT]} needs it, give {where}.{name}=..."
        for where, node in components(_resolved(cfg))
        for name in needed_arguments(where, node, settings_of(cfg).by_position)
    ]


def main(argv: Sequence[str]) -> None:
    """Print the config argv[0] with the overrides that follow it, as YAML with all keys."""
    arguments = [text for text in argv if text != "--stock"]
    if not arguments:
        raise SystemExit(f"{__doc__}\nPackaged configs: {', '.join(packaged_names())}")
    cfg = resolve(arguments[0], arguments[1:])
    print(OmegaConf.to_yaml(for_stock_recipe(cfg) if "--stock" in argv else cfg, resolve=True), end="")


if __name__ == "__main__":
    main(sys.argv[1:])
