"""Data workers: a fork server shares imports with them; a dataset that cannot be sent is a clear error."""

import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from torchtune_qwenvl.data import workers

# The imports are inside the guard, so a worker, which runs this file again, gets them from the server or not.
SCRIPT = '''
import multiprocessing
import sys


class Loaded:
    """A sample is whether its process has loaded a module that no worker needs."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        import torch
        loaded = "torchtune_qwenvl.models.qwen2_5_vl" in sys.modules
        return {"tokens": [7, int(loaded)], "mask": [True, False], "input_pos": torch.zeros(2, 3)}


if __name__ == "__main__":
    multiprocessing.set_start_method("forkserver")
    import torchtune_qwenvl.models.qwen2_5_vl
    from torchtune_qwenvl.data import ResumableSampler, build_loader

    batches = build_loader(Loaded(), batch_size=2, sampler=ResumableSampler(4), num_workers=2)
    print("loaded", [batch.inputs["tokens"][:, 1].tolist() for batch in batches])
'''


def test_a_fork_server_shares_what_was_imported(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    printed = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=280)
    assert "loaded [[1, 1], [1, 1]]" in printed.stdout, printed.stdout + printed.stderr


class Unpicklable:
    """Holds a function that no other process can find."""

    def __init__(self) -> None:
        self.function = lambda: None

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        return index


def test_a_dataset_that_cannot_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "start_method", lambda: "spawn")
    batches = DataLoader(Unpicklable(), num_workers=1, multiprocessing_context="spawn")
    with pytest.raises(
        ValueError, match=r"num_workers=1: expected a dataset .*started by spawn: .*lambda.*top level, or"
    ):
        workers.started(batches)


def test_other_errors_are_not_explained_away() -> None:
    class Broken(DataLoader):
        def __iter__(self):
            raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        workers.started(Broken([1, 2]))
