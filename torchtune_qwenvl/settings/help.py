"""Help for every key: base.yaml's comments, and what keys.py says that each key takes.

tune-qwenvl run finetune --help                       as text
python -m torchtune_qwenvl.settings.help              as the page docs/reference/keys.md
"""

import ast
import re
import textwrap
from collections.abc import Iterator
from importlib.resources import files
from typing import NamedTuple

from torchtune_qwenvl.settings.keys import ARGUMENTS
from torchtune_qwenvl.settings.recipes import DEFAULT, RECIPES, RecipeSettings

_LINE = re.compile(r"^(?P<indent> *)(?P<key>\w+): *(?P<value>[^#\s][^#]*?)? *(?:# (?P<comment>.*))?$")
_MORE = re.compile(r"^ +# (?P<comment>.*)$")
WIDTH = 100


class Key(NamedTuple):
    """A key of a recipe.

    Attributes:
        name: dotted.
        default: as it is written; empty if there is none.
        comment: what it does.
        takes: its type and range; empty if any value is taken.
    """

    name: str
    default: str
    comment: str
    takes: str


def keys_of(recipe: str) -> list[Key]:
    """The keys of a recipe, in the order of its base config; of `generate`, of its settings."""
    if recipe not in RECIPES:
        return list(_fields(files("torchtune_qwenvl.recipes").joinpath(f"{recipe}.py").read_text("utf-8")))
    settings = RECIPES[recipe]
    text = files("torchtune_qwenvl.configs").joinpath(settings.base).read_text("utf-8")
    return [Key(name, default, comment, _takes(settings, name)) for name, default, comment in _entries(text)]


def _entries(text: str) -> Iterator[tuple[str, str, str]]:
    """(dotted key, default, comment) of every line of a base config; `_component_` belongs to its slot."""
    path: list[str] = []
    found: list[list[str]] = []
    for line in text.splitlines():
        if more := _MORE.match(line):
            found[-1][2] = f"{found[-1][2]} {more['comment']}".strip()
        elif entry := _LINE.match(line):
            path = [*path[: len(entry["indent"]) // 2], entry["key"]]
            value, comment = entry["value"] or "", entry["comment"] or ""
            if entry["key"] == "_component_":
                found[-1][1:] = [value, ". ".join(filter(None, (found[-1][2], comment)))]
            else:
                found.append([".".join(path), value, comment])
    for name, default, comment in found:
        yield name, default, comment


def _takes(settings: RecipeSettings, name: str) -> str:
    slot, _, argument = name.partition(".")
    kind = settings.kinds.get(name) or ARGUMENTS.get(slot, {}).get(argument)
    return kind.says if kind else ""


def _fields(source: str) -> Iterator[Key]:
    """The fields of the class `Settings` in a recipe's source, whose comments stand on their lines."""
    lines = source.splitlines()
    classes = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    settings = next(node for node in classes if node.name == "Settings")
    for node in settings.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            comment = lines[(node.end_lineno or node.lineno) - 1][node.end_col_offset :].partition("# ")[2]
            default = ast.unparse(node.value) if node.value is not None else ""
            default = "[]" if default.startswith("field(") else default.replace("None", "null")
            yield Key(node.target.id, default, comment, ast.unparse(node.annotation).replace("None", "null"))


def help_text(recipe: str) -> str:
    """Every key of a recipe with its default, what it does and what it takes."""
    needs = "" if recipe not in RECIPES else " --config NAME"
    head = f"usage: tune-qwenvl run {recipe}{needs} [key=value ...]\n\nKeys, with their defaults:\n"
    return "\n".join([head, *map(_paragraph, keys_of(recipe)), *_of_components(recipe)])


def _of_components(recipe: str) -> list[str]:
    """The arguments of the components that a recipe begins with, and where they are described."""
    if recipe != DEFAULT:
        return []
    lines = [
        f"{slot}.{name}\n    Takes {kind.says}."
        for slot, kinds in ARGUMENTS.items()
        for name, kind in kinds.items()
    ]
    return [
        "\nArguments of components, described in docs/reference and docs/guides/data_formats.md:\n",
        *lines,
    ]


def _paragraph(key: Key) -> str:
    said = [key.comment, f"Takes {key.takes}." if key.takes else ""]
    lines = [f"{key.name}={key.default}" if key.default else key.name]
    for text in filter(None, said):
        lines += textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines)


def page() -> str:
    """The page of the documentation."""
    parts = [
        "# What every key takes",
        "The recipes and `tune-qwenvl validate` hold every key to this table before anything is loaded. What "
        "the keys do: [base.yaml](base_yaml.md), `tune-qwenvl run RECIPE --help`.",
    ]
    for recipe in RECIPES:
        rows = [f"| `{key.name}` | {_cell(key.takes)} |" for key in keys_of(recipe) if key.takes]
        parts += [f"## `{recipe}`", "\n".join(["| key | takes |", "|---|---|", *rows])]
    rows = [
        f"| `{slot}.{name}` | {_cell(kind.says)} |"
        for slot, kinds in ARGUMENTS.items()
        for name, kind in kinds.items()
    ]
    parts += [
        "## Arguments of components",
        "These hold for components of this package, torch, torchtune and torchao. Other arguments are held "
        "to the types in the component's signature.",
        "\n".join(["| argument | takes |", "|---|---|", *rows]),
    ]
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
