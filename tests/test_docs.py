"""The documentation is complete: every module is on a reference page, every example and guide is named."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = {path.relative_to(DOCS): path.read_text(encoding="utf-8") for path in DOCS.rglob("*.md")}
OWN_OPTIONS = re.compile(r"^::: (\S+)\n( {4}options: .*)?", re.MULTILINE)


def entries() -> tuple[set[str], set[str]]:
    """What the reference pages show: folders with everything in them, and single modules or objects."""
    folders, single = set(), set()
    for page in PAGES.values():
        for identifier, options in OWN_OPTIONS.findall(page):
            (single if "show_submodules: false" in options else folders).add(identifier)
    return folders, single


def is_shown(module: str, folders: set[str], single: set[str]) -> bool:
    parts = module.split(".")
    return module in single or any(".".join(parts[:n]) in folders for n in range(1, len(parts) + 1))


def public_modules() -> list[str]:
    """Dotted names of all modules and packages without an underscore anywhere in their path."""
    files = [*(ROOT / "torchtune_qwenvl").rglob("*.py"), *(ROOT / "recipes").glob("*.py")]
    names = [path.relative_to(ROOT).with_suffix("").parts for path in files]
    dotted = {".".join(part for part in parts if part != "__init__") for parts in names}
    return sorted(name for name in dotted - {"recipes"} if "._" not in name)


def test_every_public_module_is_on_a_reference_page():
    folders, single = entries()
    # A package shown without its submodules needs entries for these; its functions may be shown one by one.
    shown = {identifier.rpartition(".")[0] for identifier in folders}
    missing = [m for m in public_modules() if not is_shown(m, folders, single) and m not in shown]
    assert len(folders) > 10 and not missing


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert not [str(page) for page in PAGES if page.as_posix() not in navigation]


def test_every_example_is_named():
    readme = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    names = [path.name for path in (ROOT / "examples").iterdir() if path.name != "README.md"]
    assert names and not [name for name in names if name not in readme and not name.startswith("__")]
