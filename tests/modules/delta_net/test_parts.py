"""A delta net's convolution, gate, cache and plan."""

import pytest
import torch
import torch.nn.functional as F
from hybrid import recurrence
from torch import nn
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5RMSNormGated

from torchtune_qwenvl.models.parts import delta_net
from torchtune_qwenvl.modules.attention import Segments
from torchtune_qwenvl.modules.delta_net.convolution import causal_convolution, convolution_step
from torchtune_qwenvl.modules.delta_net.gate import GatedOutput
from torchtune_qwenvl.modules.delta_net.plan import chunk_plan
from torchtune_qwenvl.modules.kv_cache import KVCache

LENGTHS = [[1], [4], [1, 2, 3, 4, 5, 1, 9], [2, 2, 2]]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("taps", [2, 4])
def test_the_convolution_starts_anew_at_each_segment(lengths, taps):
    x = torch.randn(sum(lengths), 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, taps, dtype=torch.float64, requires_grad=True)
    plan = chunk_plan(Segments.of(lengths), taps)
    out, expected = causal_convolution(x, weight, plan), recurrence.convolution(x, weight, lengths)
    assert (out - expected).abs().max() <= 1e-13
    weights = torch.randn_like(out)
    ours, theirs = (torch.autograd.grad((y * weights).sum(), (x, weight)) for y in (out, expected))
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).norm() <= 1e-13 * (1 + other.norm())


def test_no_bit_and_no_infinity_passes_a_boundary_of_the_convolution():
    x, weight = torch.randn(9, 6, requires_grad=True), torch.randn(6, 4)
    plan = chunk_plan(Segments.of([4, 5]), 4)
    before = causal_convolution(x, weight, plan)
    poisoned = x.detach().clone()
    poisoned[:4] = float("inf")
    assert torch.equal(causal_convolution(poisoned, weight, plan)[4:], before[4:])
    poisoned = x.detach().clone()
    poisoned[4:] = float("nan")
    assert torch.equal(causal_convolution(poisoned, weight, plan)[:4], before[:4])


def test_the_convolution_rounds_once_in_bf16():
    x, weight = torch.randn(50, 64).bfloat16(), torch.randn(64, 4).bfloat16()
    exact = recurrence.convolution(x.double(), weight.double(), [50])
    ours = causal_convolution(x, weight, chunk_plan(Segments.of([50]), 4))
    theirs = recurrence.convolution(x, weight, [50])
    assert (ours - exact).norm() <= (theirs - exact).norm()


def test_single_steps_of_the_convolution():
    x, weight = torch.randn(2, 7, 6, dtype=torch.float64), torch.randn(6, 4, dtype=torch.float64)
    whole = causal_convolution(x.flatten(0, 1), weight, chunk_plan(Segments.rows(2, 7), 4))
    before = torch.zeros(2, 3, 6, dtype=torch.float64)
    for t in range(7):
        out = convolution_step(x[:, t], before, weight)
        assert (out - whole.unflatten(0, (2, 7))[:, t]).abs().max() <= 1e-13


def test_the_gate_equals_the_reference_with_every_gradient():
    reference = Qwen3_5RMSNormGated(12)
    nn.init.normal_(reference.weight)
    ours = GatedOutput(q_proj=nn.Identity(), output_proj=nn.Identity(), width=12, eps=1e-6)
    ours.scale.data.copy_(reference.weight)
    x, gate = torch.randn(9, 4, 12, requires_grad=True), torch.randn(9, 48, requires_grad=True)
    out, expected = ours(x, gate), reference(x, gate.view(9, 4, 12)).flatten(1)
    weights = torch.randn_like(out)
    torch.testing.assert_close(out, expected)
    one = torch.autograd.grad((out * weights).sum(), (x, gate, ours.scale))
    other = torch.autograd.grad((expected * weights).sum(), (x, gate, reference.weight))
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_plan_in_chunks_of_two():
    """The example of the module's docstring."""
    plan = chunk_plan(Segments.of([5, 2, 3]), taps=3, size=2)
    assert plan.active == (3, 2, 1) and plan.order.tolist() == [0, 2, 1]
    assert plan.places.tolist() == [0, 1, 6, 7, 10, 4, 5, 2, 3, 8]
    assert [rows.tolist() for rows in plan.last] == [[4, 6, 9], [3, 5, 8]]
    assert [rows.tolist() for rows in plan.first] == [[0, 5, 7], [1, 6, 8]]
    x = torch.arange(1.0, 11)[:, None]
    assert torch.equal(plan.join(plan.cut(x)), x)
    assert plan.cut(x).flatten(1)[5].tolist() == [5, 0]


def test_padding_in_a_prompt_leaves_no_trace_in_the_cache():
    torch.manual_seed(0)
    sizes = {"key_heads": 2, "value_heads": 4, "key_width": 8, "value_width": 6, "taps": 4}
    net = delta_net(16, **sizes, norm_eps=1e-6, adapter=None).double()
    x = torch.randn(3, 9, 16, dtype=torch.float64)
    prompts = [9, 2, 5]
    options = {"mixers": [net], "dtype": torch.float64, "device": "cpu"}
    cache = KVCache(prompts, 12, **options)
    cache.reserve(9)
    with torch.no_grad():
        net(x.flatten(0, 1), rotation=None, segments=Segments.rows(3, 9), cache=cache.layers[0])
        for row, length in enumerate(prompts):
            alone = KVCache([length], 12, **options)
            alone.reserve(length)
            net(x[row, :length], rotation=None, segments=Segments.rows(1, length), cache=alone.layers[0])
            for name in ("state", "window"):
                together, single = (getattr(of.layers[0], name) for of in (cache, alone))
                torch.testing.assert_close(together[row], single[0], rtol=0, atol=1e-14)


def test_a_small_change_of_the_gate_would_be_seen():
    x, gate = torch.randn(5, 4, 12), torch.randn(5, 48)
    out = GatedOutput(q_proj=nn.Identity(), output_proj=nn.Identity(), width=12, eps=1e-6)(x, gate)
    wrong = F.rms_norm(x * F.silu(gate.view_as(x)), (12,), eps=1e-6)  # gate first, then norm
    assert not torch.allclose(out, wrong.flatten(1), atol=0.1)
