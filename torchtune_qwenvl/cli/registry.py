"""Adds our recipes and configs to the list that torchtune's commands read."""

from pathlib import Path

from torchtune._recipe_registry import Config, Recipe, get_all_recipes

import torchtune_qwenvl.recipes
from torchtune_qwenvl.settings.files import find_config, packaged_names
from torchtune_qwenvl.settings.recipes import RECIPES as WITH_CONFIG

RECIPES = Path(str(torchtune_qwenvl.recipes.__file__)).parent
# Recipes that take only key=value; --config is optional.
WITHOUT_CONFIG = ("generate",)


def register() -> None:
    """Append our recipes to torchtune's list, unless they are there; it accepts absolute paths."""
    names = {recipe.name for recipe in get_all_recipes()}
    get_all_recipes().extend(recipe for recipe in ours() if recipe.name not in names)


def ours() -> list[Recipe]:
    """Our recipes, each with its packaged configs."""
    return [
        *(_with_configs(recipe) for recipe in WITH_CONFIG),
        Recipe("generate", str(RECIPES / "generate.py"), [], supports_distributed=False),
    ]


def _with_configs(recipe: str) -> Recipe:
    configs = [Config(name, str(find_config(name))) for name in packaged_names(recipe)]
    return Recipe(recipe, str(RECIPES / f"{recipe}.py"), configs, supports_distributed=True)


def recipe_names() -> list[str]:
    """Every name that `run` takes, ours first."""
    mine = [recipe.name for recipe in ours()]
    return mine + [recipe.name for recipe in get_all_recipes() if recipe.name not in mine]
