"""Find config files by name, resolve `include:` and merge files.

qwen2_5_vl/3B_lora    a config to run, in its family's folder (or the folder's stages/)
_3B                   a part of configs: sizes/3B.yaml of the family
_lora                 a part of configs: methods/lora.yaml, the same for all families
"""

from importlib.resources import files
from pathlib import Path

from omegaconf import OmegaConf

from torchtune_qwenvl.arguments import nearest
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
    content = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    if not isinstance(content, dict):
        raise ValueError(
            f"Config {path}: expected `key: value` lines at the top, got a {type(content).__name__}."
        )
    parents = content.pop("include", [])
    merged: dict = {}
    for parent in [parents] if isinstance(parents, str) else parents:
        merged = merge(merged, load_config(find_config(parent, next_to=path.parent), (*chain, path)))
    return merge(merged, content)


def merge(below: dict, above: dict) -> dict:
    """Merge `above` over `below`, key by key. Lists and nodes of another component are replaced."""
    if COMPONENT in above and above[COMPONENT] != below.get(COMPONENT, above[COMPONENT]):
        return dict(above)
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
