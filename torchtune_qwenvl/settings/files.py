"""Find config files by name, resolve `include:` and merge files.

qwen2_5_vl/3B_lora    a config to run, in its family's folder (or the folder's stages/)
_3B                   a part of configs: sizes/3B.yaml of the family
_lora                 a part of configs: methods/lora.yaml, the same for all families
"""

from importlib.resources import files
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from torchtune_qwenvl.arguments import nearest
from torchtune_qwenvl.settings.checks import find_component, takes_by_name
from torchtune_qwenvl.settings.datasets import COMPONENT
from torchtune_qwenvl.settings.recipes import recipe_of

PACKAGED = Path(str(files("torchtune_qwenvl.configs")))
PARTS = ("sizes", "methods")  # folders of parts: these cannot be run by themselves


def packaged_names(recipe: str | None = None) -> list[str]:
    """Names of the packaged configs that can be run, such as `qwen2_5_vl/3B_lora`; of one recipe or all."""
    paths = [path.relative_to(PACKAGED).with_suffix("") for path in PACKAGED.rglob("*.yaml")]
    names = (
        f"{path.parts[0]}/{path.name}"
        for path in paths
        if path.name != "base" and path.parent.name not in PARTS
    )
    return sorted(name for name in names if recipe in (None, recipe_of(name)))


def find_config(name: str, next_to: Path | None = None) -> Path:
    """The file of a config: next to the file that includes it, in the working directory, or packaged."""
    file_name = name if name.endswith((".yaml", ".yml")) else f"{name}.yaml"
    folders = [PACKAGED, Path()] if name != file_name else [Path(), PACKAGED]
    for folder in folders if next_to is None else [next_to, *folders]:
        for path in _places(folder / file_name):
            if path.is_file():
                return path
    known = packaged_names()
    raise ValueError(f"No config called '{name}'.{nearest(name, known)} Packaged ones: {', '.join(known)}.")


def _places(path: Path) -> list[Path]:
    """Where a config with this path may be: there, in stages/, or in a folder of parts."""
    folder, name = path.parent, path.name
    if not name.startswith("_"):
        return [path, folder / "stages" / name]
    return [path, folder / "sizes" / name[1:], PACKAGED / "methods" / name[1:]]


def load_config(path: Path, chain: tuple[Path, ...] = ()) -> dict:
    """A file merged over everything that it includes, as a plain dict; interpolations are not resolved."""
    path = path.resolve()
    if path in chain:
        raise ValueError(f"Config {path} includes itself, through {' -> '.join(p.name for p in chain)}.")
    try:
        content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ValueError(f"Config {path}: expected YAML, {error}") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"Config {path}: expected `key: value` lines at the top, got a {type(content).__name__}."
        )
    parents = content.pop("include", [])
    merged: dict = {}
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise ValueError(f"Config {path}: include: expected a name or a list of names, got {parents!r}.")
    for parent in parents:
        merged = merge(merged, load_config(find_config(parent, next_to=path.parent), (*chain, path)))
    return merge(merged, content)


def merge(below: dict, above: dict) -> dict:
    """Merge `above` over `below`, key by key; lists are replaced.

    Where another component is named, the arguments of the old one stay: the new one takes them, or the check
    of arguments refuses them by name.
    """
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def over_defaults(defaults: dict, written: dict) -> dict:
    """Merge what was written over the defaults of a base config.

    Where another component is written than the default one, only those default arguments stay that it takes:
    nobody has written the others. The optimizer's are AdamW's own (rate, fused kernel), so none stays.
    """
    fitting = dict(defaults)
    for slot, default in defaults.items():
        node = written.get(slot)
        if not (isinstance(default, dict) and isinstance(node, dict) and COMPONENT in default):
            continue
        name = node.get(COMPONENT, default[COMPONENT])
        if name != default[COMPONENT] and isinstance(name, str):
            takes = set() if slot == "optimizer" else takes_by_name(find_component(slot, name))
            fitting[slot] = {key: value for key, value in default.items() if key in takes}
    return merge(fitting, written)
