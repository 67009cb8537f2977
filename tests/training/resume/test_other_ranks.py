"""A run that is resumed by another number of processes goes on as if nothing had happened."""

from pathlib import Path
from typing import Any

import pytest
import torch
from faults.mini_run import COSINE, printed, result, run

from torchtune_qwenvl.training.resume.resharding import rows_from

SAVING = ("save_every_n_steps=1", "keep_last_n=null", "epochs=2", "dropout=0.0", *COSINE)
# (processes, copies of the model), and after which step the next ones go on.
CHAIN = ((1, 1, 2), (2, 1, 3), (4, 2, 5), (4, 1, 6), (1, 1, 8))


@pytest.mark.parametrize("kind", [(), ("pack_to=30",)], ids=["batches", "packed rows"])
def test_same_losses_from_one_process_to_four_and_back(tmp_path: Path, kind: tuple[str, ...]) -> None:
    """Both with batches of equal size over all ranks; the second epoch too."""
    chain = CHAIN if not kind else (CHAIN[0], CHAIN[1], CHAIN[-1])
    batch = 8 if not kind else 2
    expected: dict[str, Any] = {}
    earlier = ""
    for number, (size, copies, until) in enumerate(chain):
        out = tmp_path / f"{number}"
        options = (*SAVING, *kind, f"batch_size={batch // size}", f"data_parallel_replicate_degree={copies}")
        going_on = [f"resume={earlier}"] if earlier else []
        assert run(out, [*options, *going_on], size) == [0] * size, printed(out)
        found = result(out)["losses"]
        expected = expected or found
        for step, figures in found.items():
            assert figures == pytest.approx(expected[step], rel=1e-6), f"{size} processes, step {step}"
        assert max(found) == max(expected) >= 6
        earlier = f"{out}/step_{until}"
        if copies > 1:
            written = {path.name: path.stat().st_size for path in Path(earlier).glob("*.pt")}
            assert written[f"rank_{size - 1}.pt"] < written["rank_0.pt"] / 2


@pytest.mark.parametrize("before", range(1, 5))
@pytest.mark.parametrize("now", range(1, 5))
@pytest.mark.parametrize("rows", [1, 3, 8, 9])
def test_rows_are_cut_anew(before: int, now: int, rows: int) -> None:
    whole = torch.arange(2 * rows).reshape(rows, 2)
    pieces = [*whole.chunk(before)]
    pieces += [whole[:0]] * (before - len(pieces))
    parts = [*whole.chunk(now)]
    first = 0
    for part in parts:
        assert torch.equal(rows_from(pieces, rows, slice(first, first + len(part))), part)
        first += len(part)
    assert rows_from(pieces, rows, slice(rows, rows)).shape == (0, 2)
    assert torch.equal(rows_from([whole] * before, rows, slice(0, rows)), whole)
