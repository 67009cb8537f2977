"""Read a config: base.yaml, then the file, then overrides of the command line. Unknown keys are errors.

`configs/base.yaml` lists every key of the fine-tuning recipe with its default. A config of another recipe
names that recipe (`recipe: train_vit`), see recipes.py. A config file can include others
(`include: [_3B, _lora]`); later files override earlier ones, key by key. If a node names another
`_component_`, the whole node is replaced, so that no argument of the old component remains.

    tune-qwenvl show qwen2_5_vl/3B_lora batch_size=2     prints a config with all its keys
    tune-qwenvl show qwen2_5_vl/3B_lora --stock          for torchtune's own recipes
"""

import sys
from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

from torchtune_qwenvl.settings.checks import check_arguments, check_function, check_keys, components
from torchtune_qwenvl.settings.datasets import COMPONENT, DATASETS, MIXED, check_mix, with_component
from torchtune_qwenvl.settings.files import PACKAGED, find_config, load_config, merge, packaged_names
from torchtune_qwenvl.settings.overrides import REMOVE, parse_override, remove
from torchtune_qwenvl.settings.recipes import DEFAULT, check_recipe, settings_of
from torchtune_qwenvl.settings.stock import for_stock_recipe


def resolve(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Read a config: the defaults of its recipe, then the file, then overrides.

    Args:
        name: a packaged config (`qwen2_5_vl/3B_lora`) or a YAML file.
        overrides: `key=value`; `~key` removes a key.

    Raises:
        ValueError: an unknown config, key or argument of a component, with the most similar known one; a
            malformed override.
    """
    own = load_config(find_config(name))
    recipe = settings_of(own)
    base = load_config(PACKAGED / recipe.base)
    merged = merge(base, own)
    # Components first, so that `optimizer.lr=1 optimizer=torch.optim.SGD` keeps the learning rate.
    for path, value in sorted(map(parse_override, overrides), key=lambda edit: edit[0][-1] != COMPONENT):
        if value is REMOVE:
            merged = remove(merged, path)
            continue
        for part in reversed(path):
            value = {part: value}
        merged = merge(merged, value)
    for slot in DATASETS:
        merged[slot] = with_component(merged[slot], recipe.dataset)
    check_keys(base, merged, base_name=recipe.base)
    cfg = OmegaConf.create(merged)
    for where, node in components(OmegaConf.to_container(cfg, resolve=True)):
        check_arguments(where, node)
        if node[COMPONENT] == MIXED:
            check_mix(where, node)
    for key in recipe.functions:
        check_function(key, cfg[key])
    return cfg


def parse_arguments(argv: Sequence[str], recipe: str = DEFAULT) -> DictConfig:
    """Read the config that a recipe's command line names: `--config NAME [key=value ...]`.

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
    """Raise a ValueError for the first of these keys that has no value; base.yaml has no default for them."""
    for key in keys:
        if cfg[key] is None:
            example = f"{key}.source={settings_of(cfg).source}" if key in DATASETS else f"{key}=..."
            raise ValueError(f"Config key '{key}' is not set: give {example} or write it into the file.")


def main(argv: Sequence[str]) -> None:
    """Print the config argv[0] with the overrides that follow it, as YAML with all keys."""
    arguments = [text for text in argv if text != "--stock"]
    if not arguments:
        raise SystemExit(f"{__doc__}\nPackaged configs: {', '.join(packaged_names())}")
    cfg = resolve(arguments[0], arguments[1:])
    print(OmegaConf.to_yaml(for_stock_recipe(cfg) if "--stock" in argv else cfg, resolve=True), end="")


if __name__ == "__main__":
    main(sys.argv[1:])
