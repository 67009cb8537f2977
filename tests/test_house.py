"""The floor plan: folders that can be taken in at a glance, and a README that is read to its end."""

import subprocess
from collections import Counter
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[1]
MOST_FILES = 15
MOST_LINES_OF_README = 200


def test_no_folder_holds_more_files_than_a_glance_takes_in() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode or not listed.stdout:
        pytest.skip("not a git checkout, so nothing says which files are the project's")
    folders = Counter(str(PurePosixPath(file).parent) for file in listed.stdout.splitlines())
    assert {folder: n for folder, n in folders.items() if n > MOST_FILES} == {}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= MOST_LINES_OF_README
