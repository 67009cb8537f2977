"""Spreading, gating and collecting against torch's own operations, with every gradient."""

import pytest
import torch
import torch.nn.functional as F

from torchtune_qwenvl.modules.experts.dispatch import collect, spread, weighted_swiglu


@pytest.fixture
def order():
    """(rows, places) of 7 tokens with 3 experts each out of 5."""
    chosen = torch.stack([torch.randperm(5)[:3] for _ in range(7)]).flatten()
    order = chosen.argsort(stable=True)
    return order // 3, order.argsort().view(7, 3)


def gradients(out, *inputs):
    weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
    return torch.autograd.grad((out * weights).sum(), inputs)


def test_spread_and_collect_are_copies_and_sums(order):
    rows, places = order
    x = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    each = torch.randn(21, 4, dtype=torch.float64, requires_grad=True)
    sums = torch.zeros(7, 4, dtype=torch.float64).index_add(0, rows, each)
    assert torch.equal(spread(x, rows, places), x[rows])
    torch.testing.assert_close(collect(each, rows, places), sums)
    torch.testing.assert_close(gradients(spread(x, rows, places), x), gradients(x[rows], x))
    torch.testing.assert_close(gradients(collect(each, rows, places), each), gradients(sums, each))


def test_weights_are_put_in_order_and_so_are_their_gradients(order):
    _, places = order
    weights = torch.randn(21, requires_grad=True)
    there = places.flatten().argsort()
    ours = spread(weights, there, places.view(-1, 1))
    assert torch.equal(ours, weights[there])
    torch.testing.assert_close(gradients(ours, weights), gradients(weights[there], weights))


@pytest.mark.parametrize("n", [1, 1100])  # 1100: several pieces, the last one short
def test_the_gate_and_its_gradients(n):
    gate_up = torch.randn(n, 6, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(n, dtype=torch.float64, requires_grad=True)
    gate, up = gate_up.chunk(2, dim=-1)
    expected = F.silu(gate) * up * weights[:, None]
    ours = weighted_swiglu(gate_up, weights)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(gradients(ours, gate_up, weights), gradients(expected, gate_up, weights))


def test_the_gate_rounds_bf16_once():
    gate_up, weights = torch.randn(50, 6).bfloat16(), torch.rand(50)
    exact = weighted_swiglu(gate_up.double(), weights.double())
    ours = weighted_swiglu(gate_up, weights)
    assert ours.dtype == torch.bfloat16
    assert torch.equal(ours, exact.float().bfloat16())
