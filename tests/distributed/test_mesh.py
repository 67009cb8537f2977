"""The degrees of the mesh are filled, and checked against the number of processes."""

import pytest

from torchtune_qwenvl.distributed.mesh import degrees_of
from torchtune_qwenvl.distributed.shards import cut

SHARD, REPLICATE = "data_parallel_shard_degree", "data_parallel_replicate_degree"


@pytest.mark.parametrize(
    ("processes", "wanted", "expected"),
    [
        (1, {}, (1, 1)),
        (8, {}, (1, 8)),
        (8, {SHARD: -1, REPLICATE: 2}, (2, 4)),
        (8, {SHARD: None, REPLICATE: 2}, (2, 4)),
        (8, {SHARD: 8, REPLICATE: -1}, (1, 8)),
        (8, {SHARD: 2, REPLICATE: None}, (4, 2)),
        (8, {SHARD: 1, REPLICATE: 8}, (8, 1)),
    ],
)
def test_filled(processes: int, wanted: dict[str, int | None], expected: tuple[int, int]) -> None:
    assert degrees_of(processes, wanted) == dict(zip(("dp_replicate", "dp_shard"), expected, strict=True))


@pytest.mark.parametrize(
    ("processes", "wanted"),
    [
        (1, {SHARD: 2}),
        (8, {SHARD: 4}),
        (8, {SHARD: -1, REPLICATE: 3}),
        (8, {SHARD: 16, REPLICATE: -1}),
        (4, {SHARD: 4, REPLICATE: 2}),
        (8, {SHARD: -1, REPLICATE: -1}),
        (8, {SHARD: -2, REPLICATE: -4}),
    ],
)
def test_what_does_not_fit_is_refused_by_both_names(processes: int, wanted: dict[str, int | None]) -> None:
    with pytest.raises(ValueError, match=f"{REPLICATE}=.*, {SHARD}=.*: ") as error:
        degrees_of(processes, wanted)
    assert f"{processes} (--nproc_per_node" in str(error.value) or "at most one" in str(error.value)


@pytest.mark.parametrize("rows", range(12))
@pytest.mark.parametrize("count", range(1, 6))
def test_shards_are_cut_as_torch_cuts_them(rows: int, count: int) -> None:
    import torch

    whole = torch.arange(rows)
    expected = [part.tolist() for part in whole.chunk(count)]
    expected += [[]] * (count - len(expected))
    assert [whole[cut(rows, index, count)].tolist() for index in range(count)] == [*expected][:count]
