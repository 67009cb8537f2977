"""The wheel: every module and every YAML file is in it, and it runs where no checkout is."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Top-level folder of the checkout -> where it is installed.
HOMES = {
    "torchtune_qwenvl": "torchtune_qwenvl",
    "recipes": "torchtune_qwenvl/recipes",
    "configs": "torchtune_qwenvl/configs",
}
TUNE = "from torchtune._cli.tune import main; main()"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the checkout, unpacked in a folder of its own."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in HOMES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = f"from setuptools.build_meta import build_wheel; build_wheel({str(out)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (file,) = out.glob("*.whl")
    zipfile.ZipFile(file).extractall(out / "unpacked")
    return out / "unpacked"


def _run(wheel: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Python with the unpacked wheel before everything else, far from the checkout."""
    environment = {**os.environ, "PYTHONPATH": str(wheel)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )


def test_wheel_holds_every_module_and_config(wheel: Path):
    def files(folder: Path) -> set[str]:
        return {
            p.relative_to(folder).as_posix()
            for p in folder.rglob("*")
            if p.suffix in (".py", ".yaml", ".typed")
        }

    ours = {f"{home}/{name}" for source, home in HOMES.items() for name in files(ROOT / source)}
    assert files(wheel) == ours
    assert "torchtune_qwenvl/configs/demo/digits.yaml" in ours


def test_wheel_brings_the_command(wheel: Path):
    (scripts,) = wheel.glob("*.dist-info/entry_points.txt")
    assert "tune-qwenvl = torchtune_qwenvl.cli.main:main" in scripts.read_text()


def test_config_of_the_wheel_resolves_outside_the_checkout(wheel: Path, tmp_path: Path):
    code = (
        "import sys, torchtune_qwenvl.recipes.finetune as recipe, torchtune_qwenvl.demo\n"
        "print(recipe.__file__)\n"
        "print('test-only imports:', sorted({'transformers', 'peft', 'sklearn'} & set(sys.modules)))\n"
        "from torchtune_qwenvl.settings.config import main\n"
        "main(['demo/digits'])"
    )
    printed = _run(wheel, tmp_path, "-c", code)
    assert printed.stdout.startswith(str(wheel)), printed.stderr
    assert "test-only imports: []" in printed.stdout
    assert "source: outputs/digits/data/train.jsonl" in printed.stdout


def test_tune_run_finds_the_wheels_recipe(wheel: Path, tmp_path: Path):
    arguments = ("run", "torchtune_qwenvl/recipes/finetune.py", "--config", "demo/digit")
    refused = _run(wheel, tmp_path, "-c", TUNE, *arguments)
    assert refused.returncode != 0
    assert "No config called 'demo/digit'. Did you mean 'demo/digits'?" in refused.stderr


def test_the_package_alone_imports_no_torch(wheel: Path, tmp_path: Path):
    """What a command line or a server's start pays for before it asks for anything."""
    code = "import sys, torchtune_qwenvl; assert 'torch' not in sys.modules"
    assert _run(wheel, tmp_path, "-c", code).returncode == 0
