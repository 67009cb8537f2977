"""A fake `wandb` module that records what is logged."""

from types import SimpleNamespace
from typing import Any

import numpy as np


class FakeWandb(SimpleNamespace):
    """The module, as an object."""

    run = object()

    class Table:
        def __init__(self, columns: list[str]) -> None:
            self.columns, self.rows = columns, []

        def add_data(self, *row: Any) -> None:
            assert len(row) == len(self.columns)
            self.rows.append(row)

    @staticmethod
    def Image(array: Any) -> tuple[int, ...]:
        return np.asarray(array).shape
