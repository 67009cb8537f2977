"""torchtune's profiler from the config's node."""

from typing import Any

from omegaconf import DictConfig
from torchtune.config import instantiate
from torchtune.training import DummyProfiler


def build_profiler(node: DictConfig) -> Any:
    """What `node` describes, a context with `step()`; one that does nothing where it is not enabled."""
    if not node.get("enabled", False):
        return DummyProfiler()
    profiler, _ = instantiate(node)
    return profiler
