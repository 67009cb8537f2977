"""Shared fixtures. Helpers that are plain functions live in `tiny.py` (`import tiny` works in every test)."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # one core each; more threads only wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import tiny
import torch

LONGEST = {"demo", "recipes", "test_packaging.py", "test_public_api.py"}  # whole runs, whole installations


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: neither process is left alone with one of them at the end."""
    skipped = pytest.mark.skip(reason="a long campaign: runs under CAMPAIGN=1")
    for item in items:
        if item.get_closest_marker("campaign") and os.environ.get("CAMPAIGN") != "1":
            item.add_marker(skipped)
    items.sort(key=lambda item: LONGEST.isdisjoint(item.path.parts))


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Qwen2.5-VL checkpoint folder in the published layout, untied, one shard. Read only."""
    return tiny.save_tiny_folder(tmp_path_factory.mktemp("tiny") / "published")


@pytest.fixture
def peft_without_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    """PEFT refuses to inject LoRA beside torchao < 0.16, which torchtune needs: say it is absent."""
    import peft.import_utils
    import peft.tuners.lora.torchao

    for module in (peft.import_utils, peft.tuners.lora.torchao):
        monkeypatch.setattr(module, "is_torchao_available", lambda: False)
