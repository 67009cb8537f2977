"""What sharding leaves alone, and how the device's allocator is set."""

import os
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torchtune.modules import TransformerSelfAttentionLayer

from torchtune_qwenvl.distributed import World, set_allocator, shard
from torchtune_qwenvl.modules.experts.moe import GroupedExperts, SparseMoE
from torchtune_qwenvl.modules.experts.routers import SigmoidRouter

WIDTH, EXPERTS = 16, 8


@pytest.fixture
def two_ranks() -> Iterator[World]:
    """A world of two, this process alone: collectives return at once."""
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield World(torch.device("cpu"), 0, 2)
    dist.destroy_process_group()


def test_a_routers_bias_stays_whole_and_in_fp32(two_ranks: World) -> None:
    router = SigmoidRouter(WIDTH, EXPERTS, top_k=2)
    moe = SparseMoE(router, GroupedExperts(EXPERTS, WIDTH, 8))
    norms = {name: torch.nn.LayerNorm(WIDTH) for name in ("sa_norm", "mlp_norm")}
    layer = TransformerSelfAttentionLayer(torch.nn.Identity(), moe, **norms)
    router.correction_bias.data = 8 + 0.02 * torch.randn(EXPERTS)
    expected = router.correction_bias.detach().clone()
    shard(torch.nn.Sequential(layer), two_ranks, torch.bfloat16)
    seen = []
    router.register_forward_pre_hook(lambda module, _: seen.append(module.correction_bias.detach().clone()))
    with torch.no_grad():
        layer.unshard()
        router(torch.randn(4, WIDTH, dtype=torch.bfloat16))
    assert torch.equal(seen[0], expected)  # in bf16 numbers around 8 are 1/32 apart
    layer.reshard()
    assert isinstance(router.weight, DTensor) and not isinstance(router.correction_bias, DTensor)


@pytest.mark.parametrize("theirs", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", None])
def test_the_allocators_segments_grow_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, theirs: str | None
) -> None:
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    if theirs is not None:
        monkeypatch.setenv(theirs, "max_split_size_mb:128")
    set_allocator()
    given = {name: os.environ.get(name) for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")}
    theirs_stays = {theirs: "max_split_size_mb:128"}
    expected = theirs_stays if theirs else {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    assert {name: value for name, value in given.items() if value} == expected
