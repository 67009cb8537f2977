"""The gated delta rule in chunks against its recurrence, and what segments may not do to each other."""

import random
import sys
from types import SimpleNamespace

import pytest
import torch
from faults.campaign import campaign_size
from hybrid import recurrence
from transformers.models.qwen3_5.modeling_qwen3_5 import torch_chunk_gated_delta_rule

from torchtune_qwenvl.modules.attention import Segments
from torchtune_qwenvl.modules.delta_net.backends import FLA_INSTALLED, fla_delta_rule
from torchtune_qwenvl.modules.delta_net.plan import CHUNK, chunk_plan
from torchtune_qwenvl.modules.delta_net.rule import (
    chunked_delta_rule,
    delta_rule_step,
    delta_rule_with_states,
)

EDGES = [1, 2, 3, 4, 63, 64, 65]
LENGTHS = [[1], [CHUNK], [CHUNK + 1], [5, 5], [3, 130, 1, 64, 63, 2, 200], [4, 65, 4, 127, 128, 129]]


def plan_of(lengths):
    return chunk_plan(Segments.of(lengths), taps=4)


def gradients(out, inputs, weights):
    return torch.autograd.grad((out * weights).sum(), inputs)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_equals_the_recurrence_in_fp64_with_every_gradient(lengths):
    inputs = recurrence.inputs(lengths)
    out = chunked_delta_rule(*inputs, plan_of(lengths))
    expected, states = recurrence.delta_rule(*inputs, lengths)
    assert (out - expected).abs().max() <= 1e-12
    weights = torch.randn_like(out)
    pairs = zip(gradients(out, inputs, weights), gradients(expected, inputs, weights), strict=True)
    for name, (ours, theirs) in zip(recurrence.NAMES, pairs, strict=True):
        assert (ours - theirs).norm() <= 1e-12 * (1 + theirs.norm()), name
    again, after = delta_rule_with_states(*inputs, plan_of(lengths))
    assert torch.equal(again, out) and (after - states).abs().max() <= 1e-12


def test_many_mixtures_of_lengths_around_the_edges_of_chunks():
    rng, worst = random.Random(0), 0.0
    for mixture in range(campaign_size(30, 200)):
        lengths = [rng.choice([*EDGES, rng.randint(1, 150)]) for _ in range(rng.randint(1, 6))]
        inputs = recurrence.inputs(lengths, m=1, h=2, d=4, e=3, seed=mixture)
        expected, _ = recurrence.delta_rule(*inputs, lengths)
        worst = max(worst, (chunked_delta_rule(*inputs, plan_of(lengths)) - expected).abs().max().item())
    assert worst <= 1e-12


def test_bf16_errs_no_more_than_the_reference():
    lengths = [150, 150]
    wide = recurrence.inputs(lengths, d=64, e=64)
    half = [x.detach().bfloat16().requires_grad_() for x in wide]
    exact = [x.detach().double().requires_grad_() for x in half]
    expected, _ = recurrence.delta_rule(*exact, lengths)
    ours = chunked_delta_rule(*half, plan_of(lengths))
    rows = [x.unflatten(0, (2, 150)) for x in half]
    theirs, _ = torch_chunk_gated_delta_rule(*rows, use_qk_l2norm_in_kernel=True)
    assert (ours - expected).norm() <= 1.5 * (theirs.flatten(0, 1) - expected).norm()
    weights = torch.randn_like(expected).bfloat16()
    for name, ours_of, theirs_of, exact_of in zip(
        recurrence.NAMES,
        gradients(ours, half, weights),
        gradients(theirs.flatten(0, 1), half, weights),
        gradients(expected, exact, weights.double()),
        strict=True,
    ):
        assert (ours_of - exact_of).norm() <= 1.5 * (theirs_of - exact_of).norm(), name


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_neighbour_changes_not_one_bit(at):
    """Neither result nor gradient, whatever the neighbour holds."""
    lengths, spans = [65, 3, 64], [slice(0, 65), slice(65, 68), slice(68, 132)]
    plan, weights = plan_of(lengths), torch.randn(132, 4, 8)
    inputs = recurrence.inputs(lengths, dtype=torch.float32)
    changed = [x.detach().clone() for x in inputs]
    for x, factor in zip(changed, (1e4, -1e4, 1e30, 3.0, 0.1), strict=True):
        x[spans[at]] = x[spans[at]] * factor
    changed = [x.requires_grad_() for x in changed]
    results = []
    for values in (inputs, changed):
        out = chunked_delta_rule(*values, plan)
        results.append((out, *gradients(out, values, weights)))
    for before, after in zip(*results, strict=True):
        for i, span in enumerate(spans):
            assert torch.equal(before[span], after[span]) == (i != at)


def test_steps_from_a_state_equal_the_whole():
    lengths = [70, 70]
    inputs = [x.detach() for x in recurrence.inputs(lengths)]
    whole = chunked_delta_rule(*inputs, plan_of(lengths)).unflatten(0, (2, 70))
    rows = [x.unflatten(0, (2, 70)) for x in inputs]
    prompt = [x[:, :66].flatten(0, 1) for x in rows]
    _, state = delta_rule_with_states(*prompt, plan_of([66, 66]))
    for t in range(66, 70):
        out = delta_rule_step(*(x[:, t] for x in rows), state)
        assert (out - whole[:, t]).abs().max() <= 1e-12


def test_the_kernels_of_fla_get_what_they_document(monkeypatch):
    """A stand-in with their arguments: [1, n, heads, width], as many key heads as value heads, boundaries."""
    lengths, inputs = [3, 66, 1], [x.detach() for x in recurrence.inputs([3, 66, 1])]

    def chunk_gated_delta_rule(q, k, v, g, beta, *, use_qk_l2norm_in_kernel, cu_seqlens):
        assert use_qk_l2norm_in_kernel and q.shape == k.shape and q.shape[:3] == v.shape[:3]
        assert beta.dtype == v.dtype and cu_seqlens.dtype == torch.int64
        found = cu_seqlens.diff().tolist()
        return recurrence.delta_rule(*(x[0] for x in (q, k, v, g, beta)), found)[0][None], None

    stand_in = SimpleNamespace(chunk_gated_delta_rule=chunk_gated_delta_rule)
    monkeypatch.setitem(sys.modules, "fla.ops.gated_delta_rule", stand_in)
    found = fla_delta_rule(*inputs, Segments.of(lengths))
    assert (found - chunked_delta_rule(*inputs, plan_of(lengths))).abs().max() <= 1e-12


@pytest.mark.gpu
@pytest.mark.skipif(not (FLA_INSTALLED and torch.cuda.is_available()), reason="needs CUDA and fla's kernels")
def test_the_kernels_of_fla_equal_ours():
    lengths = [3, 130, 1, 64, 200]
    inputs = [x.detach().cuda() for x in recurrence.inputs(lengths, d=128, e=128)]
    half = [x.bfloat16() if x.dim() == 3 else x.float() for x in inputs]
    half = [x.requires_grad_() for x in half]
    segments = Segments.of(lengths, "cuda")
    ours = chunked_delta_rule(*half, chunk_plan(segments, 4))
    theirs = fla_delta_rule(*half, segments)
    assert (ours - theirs).norm() <= 1e-2 * ours.norm()
    weights = torch.randn_like(ours)
    for one, other in zip(gradients(ours, half, weights), gradients(theirs, half, weights), strict=True):
        assert (one - other).norm() <= 2e-2 * one.norm()
