"""Findings of rehearsed steps: one process runs all cases that the tests of a file ask for."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from rehearsal import shim
from rehearsal.run import PROGRAM

Findings = dict[str, dict[str, Any]]


@pytest.fixture(scope="session")
def rehearse(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Findings]:
    """Names of cases -> the findings of each; skips where nothing can be rehearsed."""
    if reason := shim.missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("shim")
    shim.build(folder)

    def run(*cases: str) -> Findings:
        done = shim.run(folder, PROGRAM, *cases)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)

    return run
