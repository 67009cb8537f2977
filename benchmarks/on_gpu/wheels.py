"""Gather what a bare GPU machine lacks: wheels for its Python, to be carried there and installed offline.

    python benchmarks/on_gpu/wheels.py wheels                       for Python 3.12
    python benchmarks/on_gpu/wheels.py wheels --python 3.11 --with peft av

The machine is taken to have torch, torchvision, transformers and what these need (numpy, pillow, tokenizers,
safetensors, pyyaml, tqdm). pip downloads what else the recipe imports, without dependencies of its own, about
100 MB. The wheel of this package is built too. The last line says how to install.
"""

import argparse
import importlib.util
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What `import torchtune_qwenvl.recipes.finetune` loads beyond torch and transformers.
NEEDED = (
    *("torchtune==0.6.1", "torchao==0.15.0", "torchdata", "omegaconf", "antlr4-python3-runtime==4.9.3"),
    *("datasets", "dill", "multiprocess", "xxhash", "pyarrow", "pandas", "python-dateutil", "six"),
    *("sentencepiece", "tiktoken", "psutil"),
    *("matplotlib", "contourpy", "cycler", "fonttools", "kiwisolver", "pyparsing"),
)
SOURCE_ONLY = ("antlr4-python3-runtime",)  # no wheel is published: one is built here


def main(argv: Sequence[str] | None = None) -> None:
    """Download and build into a folder, and print its size and the line that installs it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12", metavar="X.Y", help="default: %(default)s")
    parser.add_argument("--platform", default="manylinux_2_28_x86_64", help="default: %(default)s")
    parser.add_argument("--with", nargs="+", default=[], dest="more", metavar="PACKAGE", help="further ones")
    arguments = parser.parse_args(argv)
    if importlib.util.find_spec("pip") is None:
        sys.exit(f"{sys.executable} has no pip: run this with a Python that has it, any version")
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for command in commands(arguments.folder, arguments.python, arguments.platform, arguments.more):
        subprocess.run(command, check=True)
    wheels = sorted(arguments.folder.glob("*.whl"))
    size = sum(wheel.stat().st_size for wheel in wheels) / 1e6
    print(f"{len(wheels)} wheels, {size:.0f} MB\n{install_line(arguments.folder)}")


def commands(folder: Path, python: str, platform: str, more: Sequence[str]) -> list[list[str]]:
    """pip's command lines: downloads for the other Python, then what has to be built."""
    pip = [sys.executable, "-m", "pip"]
    built = [name for name in NEEDED if _name(name) in SOURCE_ONLY]
    found = [name for name in (*NEEDED, *more) if name not in built]
    older = ["manylinux_2_17_x86_64", "manylinux2014_x86_64"] if "manylinux" in platform else []
    target = ["--python-version", python, "--implementation", "cp", "--only-binary=:all:"]
    target += [word for name in (platform, *older) for word in ("--platform", name)]
    into = ["--no-deps", "--dest", str(folder)]
    return [
        [*pip, "download", *into, *target, *found],
        [*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), *built, str(ROOT)],
    ]


def install_line(folder: Path) -> str:
    """The command for the GPU machine."""
    return f"pip install --no-index --no-deps {folder}/*.whl"


def _name(requirement: str) -> str:
    return re.split(r"[=<>~!]", requirement)[0]


if __name__ == "__main__":
    main()
