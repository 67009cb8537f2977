"""A table of the recipes that take a config, with the base config that lists the keys of each."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torchtune_qwenvl.arguments import nearest
from torchtune_qwenvl.settings.keys import FINETUNE, TRAIN_VIT
from torchtune_qwenvl.settings.kinds import Kind


@dataclass(frozen=True)
class RecipeSettings:
    """How the configs of a recipe are read.

    Attributes:
        base: file in configs/ with every key and its default.
        dataset: the component of `dataset.source=...` if none is named.
        source: an example of such a source, for error messages.
        folders: folders in configs/ with configs of this recipe; empty: all folders of no other recipe.
        functions: keys whose value is the path of a function.
        kinds: what each key takes.
        needed: keys without a default, which a run cannot do without.
        by_position: key -> how many arguments the recipe gives its component by position.
    """

    base: str
    dataset: str
    source: str
    folders: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    needed: tuple[str, ...] = ("model", "dataset")
    by_position: Mapping[str, int] = field(default_factory=dict)


_ALONE = dict.fromkeys(("prepare", "model", "tokenizer", "loss", "profiler", "metric_logger"), 0)
_BOTH = {**_ALONE, "optimizer": 1, "lr_scheduler": 1}

DEFAULT = "finetune"
RECIPES = {
    DEFAULT: RecipeSettings(
        "base.yaml",
        "torchtune_qwenvl.data.vision_chat_dataset",
        "data.json",
        functions=("collate_fn",),
        kinds=FINETUNE,
        needed=("checkpoint_dir", "model", "dataset"),
        by_position={**_BOTH, "dataset": 1, "val_dataset": 1, "evaluate": 2, "finish": 3},
    ),
    "train_vit": RecipeSettings(
        "vit/base.yaml",
        "torchtune_qwenvl.data.labelled.labelled_images",
        "photos/",
        folders=("vit",),
        kinds=TRAIN_VIT,
        by_position={
            **_BOTH,
            **dict.fromkeys(("dataset", "val_dataset", "train_transforms", "val_transforms", "mixes"), 0),
            "finish": 2,
        },
    ),
}


def settings_of(config: Mapping[str, Any]) -> RecipeSettings:
    """The settings of the recipe that a config names by its key `recipe`; without the key, of `finetune`.

    Raises:
        ValueError: a recipe that does not exist.
    """
    name = config.get("recipe", DEFAULT)
    if not isinstance(name, str) or name not in RECIPES:
        hint = nearest(str(name), RECIPES)
        raise ValueError(f"Config key 'recipe': expected one of {', '.join(RECIPES)}, got '{name}'.{hint}")
    return RECIPES[name]


def recipe_of(packaged_name: str) -> str:
    """The recipe of a packaged config, by its folder."""
    folder = packaged_name.partition("/")[0]
    return next((name for name, recipe in RECIPES.items() if folder in recipe.folders), DEFAULT)


def check_recipe(config: Mapping[str, Any], recipe: str) -> None:
    """Raise a ValueError for a config of another recipe."""
    if config["recipe"] != recipe:
        raise ValueError(
            f"This config is for the recipe {config['recipe']}, not for {recipe}: run `tune-qwenvl run "
            f"{config['recipe']} --config ...`."
        )
