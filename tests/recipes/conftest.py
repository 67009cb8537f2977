"""A tiny run that all tests of recipes share."""

from pathlib import Path

import pytest
from tiny_run import write_run


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a tiny run: 4 steps, full training. Its folder has checkpoint/ and data.json."""
    return write_run(tmp_path_factory.mktemp("recipe"))
