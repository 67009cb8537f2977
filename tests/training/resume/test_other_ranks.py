"""A run that is resumed by another number of processes goes on as if nothing had happened."""

from pathlib import Path
from typing import Any

import pytest
import torch
from faults.mini_run import COSINE, printed, result, run
from torch import nn
from torchao.optim.subclass_8bit import OptimState8bit

from torchtune_qwenvl.training import resume
from torchtune_qwenvl.training.resume.meta import Meta
from torchtune_qwenvl.training.resume.resharding import cut_anew, rows_from

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


def test_a_mix_of_streams_goes_on(tmp_path: Path) -> None:
    """Which records it reads is tested with the streams; here that places of all ranks reach one."""
    options = (*SAVING[1:], "save_every_n_steps=2", "streams=true", "pack_to=30", "max_steps_per_epoch=4")
    assert run(tmp_path / "two", options, 2) == [0, 0], printed(tmp_path / "two")
    saved = f"resume={tmp_path}/two/step_2"
    assert run(tmp_path / "one", [*options, "batch_size=8", saved]) == [0], printed(tmp_path / "one")
    before, after = (result(tmp_path / name)["losses"] for name in ("two", "one"))
    assert after[2] == before[2] and after[3] != before[3] and max(after) >= 5


def write_shards(folder: Path, states: list[dict[str, Any]], rows: int) -> Meta:
    """Files of ranks that share a weight of so many rows each, with this state of an optimizer."""
    for rank, state in enumerate(states):
        shard = {"parameters": {"weight": torch.full((rows, 512), float(rank))}}
        torch.save(
            {**shard, "optimizer": {"state": {"weight": state}, "groups": []}}, folder / f"rank_{rank}.pt"
        )
    return Meta("run", len(states), len(states), "cpu", resume.Progress(), {})


def test_states_of_eight_bits_stay_what_they_are(tmp_path: Path) -> None:
    shards = [OptimState8bit.zeros((8, 512)).copy_(torch.randn(8, 512)) for _ in range(2)]
    step = torch.tensor(3.0)
    meta = write_shards(tmp_path, [{"exp_avg": shard, "step": step} for shard in shards], 8)
    found = cut_anew(tmp_path, meta, nn.Linear(512, 16, bias=False))
    assert found["parameters"]["weight"][:, 0].tolist() == [0.0] * 8 + [1.0] * 8
    state = found["optimizer"]["state"]["weight"]
    assert state["step"] == step and isinstance(state["exp_avg"], OptimState8bit)
    assert torch.equal(state["exp_avg"].codes, torch.cat([shard.codes for shard in shards]))
    torch.testing.assert_close(state["exp_avg"].scale, torch.cat([shard.scale for shard in shards]))


def test_a_state_without_rows_is_refused_by_name(tmp_path: Path) -> None:
    meta = write_shards(
        tmp_path, [{"column_mean": torch.full((1, 512), float(rank))} for rank in range(2)], 8
    )
    with pytest.raises(
        ValueError, match=r"state of weight, 'column_mean', .* as before \(2: --nproc_per_node"
    ):
        cut_anew(tmp_path, meta, nn.Linear(512, 16, bias=False))


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
