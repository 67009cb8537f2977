"""Builds torchtune's profiler from the config."""

from typing import Any

from omegaconf import DictConfig
from torchtune.config import instantiate
from torchtune.training import DummyProfiler


def build_profiler(node: DictConfig) -> Any:
    """The profiler that `node` describes: a context manager with `step()`. Does nothing unless enabled."""
    if not node.get("enabled", False):
        return DummyProfiler()
    profiler, _ = instantiate(node)
    return profiler
