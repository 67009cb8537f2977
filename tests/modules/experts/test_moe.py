"""The mixture of experts against each expert on its own tokens, and what its routers record."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from torchtune_qwenvl.modules.adapters.lora import Adapter
from torchtune_qwenvl.modules.experts.grouped import GroupedLoRALinear, grouped_linear, grouped_mm_takes
from torchtune_qwenvl.modules.experts.moe import GroupedExperts, SparseMoE
from torchtune_qwenvl.modules.experts.routers import Router, RouterStatistics


def moe(experts: int = 5, width: int = 8, inner: int = 6, top_k: int = 2) -> SparseMoE:
    return SparseMoE(Router(width, experts, top_k), GroupedExperts(experts, width, inner))


def one_by_one(layer: SparseMoE, x: torch.Tensor) -> torch.Tensor:
    out = torch.zeros_like(x)
    for n, token in enumerate(x):
        chances = (layer.router.weight @ token).softmax(-1)
        largest, chosen = chances.topk(layer.router.top_k)
        for share, e in zip(largest / largest.sum(), chosen, strict=True):
            gate, up = (layer.experts.w1.weight[e] @ token).chunk(2)
            out[n] += share * (layer.experts.w2.weight[e] @ (F.silu(gate) * up))
    return out


@pytest.mark.parametrize("top_k", [1, 2, 5])
@pytest.mark.parametrize("n", [1, 23])
def test_every_token_meets_its_experts_and_no_other(n, top_k):
    layer, x = moe(top_k=top_k).double(), torch.randn(n, 8, dtype=torch.float64, requires_grad=True)
    # The router's softmax is fp32 by design, its weights are compared as such.
    expected = one_by_one(layer, x)
    torch.testing.assert_close(layer(x), expected, rtol=1e-6, atol=1e-7)
    ours = torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()])
    theirs = torch.autograd.grad(expected.square().sum(), [x, *layer.parameters()])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_an_expert_without_tokens_gets_a_zero_gradient():
    weight = torch.randn(3, 4, 2, requires_grad=True)
    grouped_linear(torch.randn(5, 2), weight, torch.tensor([2, 0, 3])).sum().backward()
    assert not weight.grad[1].any() and weight.grad[0].any() and weight.grad[2].any()


def test_lora_on_experts_is_the_merged_matrix():
    """Forward, and the gradients of A and B against those of autograd through the merged matrices."""
    linear, counts = GroupedLoRALinear(3, 8, 6, rank=2, alpha=4.0).double(), torch.tensor([2, 0, 3])
    assert not linear.lora_b.weight.any() and linear.lora_a.weight.abs().max() <= 8**-0.5
    torch.nn.init.normal_(linear.lora_b.weight)
    x = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    matrices = linear.weight + 2 * linear.lora_b.weight @ linear.lora_a.weight
    expected = torch.stack([matrices[e] @ row for e, row in zip([0, 0, 2, 2, 2], x, strict=True)])
    torch.testing.assert_close(linear(x, counts), expected)
    ours = torch.autograd.grad(linear(x, counts).square().sum(), [x, *linear.parameters()])
    theirs = torch.autograd.grad(expected.square().sum(), [x, *linear.parameters()])
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_frozen_experts_with_lora_get_no_gradient_of_their_own():
    experts = GroupedExperts(3, 8, 6, Adapter(frozenset({"w1", "w2"}), rank=2, alpha=4.0, dropout=0.5))
    for linear in (experts.w1, experts.w2):
        linear.weight.requires_grad_(False)
        torch.nn.init.normal_(linear.lora_b.weight)
    counts, weights = torch.tensor([2, 1, 2]), torch.rand(5)
    x = torch.randn(5, 8)
    experts(x, counts, weights).sum().backward()
    with_gradient = {name for name, p in experts.named_parameters() if p.grad is not None}
    assert with_gradient == {name for name, _ in experts.named_parameters() if "lora" in name}
    assert not torch.equal(experts(x, counts, weights), experts(x, counts, weights))  # dropout
    assert torch.equal(experts.eval()(x, counts, weights), experts(x, counts, weights))


def test_bf16_activations_under_fp32_weights():
    """As under autocast, which does not reach into the grouped product."""
    out = grouped_linear(torch.randn(4, 8).bfloat16(), torch.randn(2, 6, 8), torch.tensor([1, 3]))
    assert out.dtype == torch.bfloat16 and out.shape == (4, 6)


def test_load_balance_loss_is_least_for_an_even_load_and_leaves_padding_out():
    layer = moe(experts=4, top_k=1)
    even, chosen = torch.full((8, 4), 0.25), torch.arange(8)[:, None] % 4

    def loss(chances, chosen, real=None):
        statistics = RouterStatistics(real)
        statistics.record(layer, chances, chosen)
        statistics.record(layer, chances, chosen)  # the same layer again, recomputed
        return statistics.load_balance_loss()

    torch.testing.assert_close(loss(even, chosen), torch.tensor(1.0))
    skewed = F.one_hot(torch.zeros(8, dtype=torch.int64), 4).float()
    torch.testing.assert_close(loss(skewed, torch.zeros(8, 1, dtype=torch.int64)), torch.tensor(4.0))
    padded = torch.cat([even, skewed]), torch.cat([chosen, torch.zeros(8, 1, dtype=torch.int64)])
    real = torch.arange(16) < 8
    torch.testing.assert_close(loss(*padded, real), torch.tensor(1.0))


def test_what_a_recomputed_layer_records_after_the_loss_is_dropped():
    """Else it would keep the recomputed activations until the backward pass ends."""
    layer, statistics = moe(), RouterStatistics()
    x = torch.randn(6, 8, requires_grad=True)
    checkpoint(layer, x, statistics, use_reentrant=False)
    calls: list[int] = []
    layer.router.register_forward_hook(lambda *args: calls.append(1))
    statistics.load_balance_loss().backward()
    assert len(calls) == 1 and layer.router.weight.grad.any()
    assert not any(vars(statistics).values())


def test_grouped_product_of_cuda_gets_only_what_it_takes():
    """torch checks forward's and backward's strides on the meta device as its CUDA kernel does."""
    taken, dtype = set(), torch.bfloat16
    for width, out in [(w, o) for w in (4, 6, 8, 12, 16) for o in (2, 4, 8, 24)]:
        weight = torch.empty(3, out, width, dtype=dtype, device="meta", requires_grad=True)
        x = torch.empty(10, width, dtype=dtype, device="meta", requires_grad=True)
        offsets = torch.empty(3, dtype=torch.int32, device="meta")
        try:
            y = F.grouped_mm(x, weight.transpose(1, 2), offs=offsets)
            torch.autograd.grad(y, [x, weight], torch.empty(10, out, dtype=dtype, device="meta"))
        except RuntimeError:
            assert not grouped_mm_takes(weight), (width, out)
        else:
            taken.add((width, out))
            assert grouped_mm_takes(weight), (width, out)
    assert (8, 8) in taken and (6, 2) not in taken
