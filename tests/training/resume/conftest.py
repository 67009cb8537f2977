"""A model that has made one step, and its folders."""

from pathlib import Path

import pytest
import torch
from torch import nn

from torchtune_qwenvl.distributed import World
from torchtune_qwenvl.training import resume

WORLD = World(torch.device("cpu"))


class Training:
    """A model that has made one step."""

    def __init__(self) -> None:
        self.model = nn.Linear(3, 2)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.identity = resume.Identity()
        self.go()

    def go(self) -> None:
        self.model(torch.ones(1, 3)).sum().backward()
        self.optimizer.step()

    def save(self, folder: Path, step: int, keep_last_n: int | None = None) -> Path:
        progress = resume.Progress(step=step, epoch=1, data={"epoch": 1, "samples_done": 6})
        return resume.save(
            folder, WORLD, self.model, self.optimizer, None, progress, keep_last_n, self.identity
        )


@pytest.fixture
def training() -> Training:
    return Training()
