"""The gated delta rule over segments: linear attention with a state that forgets and corrects itself.

For each head, with a state S [d, e] that is 0 before a segment's first token:

    S_t = exp(g_t) S_{t-1} + k_t (b_t (v_t - exp(g_t) S_{t-1}^T k_t))^T      o_t = S_t^T q_t / sqrt(d)

q and k are normalised to length 1 first. Written so, a segment takes as many steps as it has tokens. In
chunks of C tokens it takes n / C: with c the sums of g from the chunk's start, D_ij = exp(c_i - c_j) for i >=
j, the state S before the chunk, and rows of the chunk's tokens in K, Q, V,

    A  = diag(b) (K K^T * D) below the diagonal     T = (1 + A)^-1
    U  = T diag(b) (V - diag(e^c) K S)              what the tokens add to the state
    O  = diag(e^c) Q S + (Q K^T * D) U              S' = e^{c_C} S + K^T diag(e^{c_C - c}) U

No exponent is positive, so nothing overflows. All is computed in fp32. Only the inputs are kept for the
backward pass, which computes the rest again: states alone are larger than the activations of a layer.

n tokens, m key heads, h value heads (a multiple of m), d key width, e value width, N chunks of C tokens, s
segments. Sources: Yang et al. 2024, arXiv:2412.06464 (the rule), arXiv:2406.06484 (chunks).
"""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from torchtune_qwenvl.modules.delta_net.plan import ChunkPlan
from torchtune_qwenvl.modules.norm import at_least_fp32

_EPS = 1e-6  # of the length of queries and keys


def chunked_delta_rule(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, plan: ChunkPlan) -> Tensor:
    """The rule over all tokens of some segments, differentiable.

    Args:
        q: queries [n, m, d].
        k: keys [n, m, d].
        v: values [n, h, e].
        g: logarithms of the decay [n, h], at most 0.
        beta: how much of an update is applied [n, h], in 0 .. 1.
        plan: chunks of the segments.

    Returns:
        [n, h, e] in v's dtype.
    """
    return _DeltaRule.apply(q, k, v, g, beta, plan)


@torch.no_grad()
def delta_rule_with_states(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, plan: ChunkPlan
) -> tuple[Tensor, Tensor]:
    """`chunked_delta_rule`, and the state [s, h, d, e] after the last token of each segment, fp32."""
    out, states = _forward(_Inputs(q, k, v, g, beta), plan)
    return out.to(v.dtype), states.index_select(0, plan.order)


def delta_rule_step(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor) -> Tensor:
    """The rule for one token per row; `state` [b, h, d, e] is updated.

    Args:
        q, k: [b, m, d].
        v: [b, h, e].
        g, beta: [b, h].
        state: before the token, fp32.

    Returns:
        [b, h, e] in v's dtype.
    """
    groups = v.shape[1] // q.shape[1]
    q, k = (unit(at_least_fp32(x))[0].repeat_interleave(groups, dim=1) for x in (q, k))
    state.mul_(g.exp()[..., None, None])
    known = (state * k[..., None]).sum(-2)
    update = (at_least_fp32(v) - known) * beta[..., None]
    state.add_(k[..., None] * update[..., None, :])
    return ((state * q[..., None]).sum(-2) * q.shape[-1] ** -0.5).to(v.dtype)


def unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [..., d] divided by its length, and the factor [..., 1]."""
    factor = x.square().sum(-1, keepdim=True).add_(_EPS).rsqrt_()
    return x * factor, factor


class _Inputs(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor
    beta: Tensor


class _Chunks(NamedTuple):
    """All chunks, [N, h, C, ...] in fp32; key heads are repeated for their value heads."""

    q: Tensor  # unit length, over sqrt(d)
    k: Tensor
    v: Tensor
    beta: Tensor  # [N, h, C]
    decay: Tensor  # D, [N, h, C, C], 0 above the diagonal
    lower: Tensor  # K K^T * D below the diagonal
    inverse: Tensor  # T
    attend: Tensor  # Q K^T * D
    entering: Tensor  # e^c, [N, h, C, 1]
    leaving: Tensor  # e^{c_C - c}
    whole: Tensor  # e^{c_C}, [N, h, 1, 1]


def _chunks(inputs: _Inputs, plan: ChunkPlan) -> _Chunks:
    q, k, v, g, beta = (plan.cut(at_least_fp32(x)) for x in inputs)
    groups = v.shape[1] // k.shape[1]
    q, k = unit(q)[0].mul_(q.shape[-1] ** -0.5), unit(k)[0]
    total = g.cumsum(-1)
    decay = (total[..., :, None] - total[..., None, :]).clamp_(max=0).exp_().tril_()
    attend = (q @ k.mT).repeat_interleave(groups, dim=1).mul_(decay)
    lower = (k @ k.mT).repeat_interleave(groups, dim=1).mul_(decay).tril_(-1)
    one = torch.eye(plan.size, dtype=k.dtype, device=k.device)
    inverse = torch.linalg.solve_triangular(
        lower * beta[..., None] + one, one, upper=False, unitriangular=True
    )
    last = total[..., -1:]
    return _Chunks(
        q.repeat_interleave(groups, dim=1),
        k.repeat_interleave(groups, dim=1),
        v,
        beta,
        decay,
        lower,
        inverse,
        attend,
        total.exp()[..., None],
        (last - total).exp_()[..., None],
        last.exp()[..., None],
    )


def _steps(plan: ChunkPlan) -> list[slice]:
    """The chunks of each step."""
    ends = accumulate(plan.active)
    return [slice(end - active, end) for end, active in zip(ends, plan.active, strict=True)]


def _empty_states(chunks: _Chunks, segments: int) -> Tensor:
    heads, d, e = chunks.v.shape[1], chunks.k.shape[-1], chunks.v.shape[-1]
    return chunks.v.new_zeros(segments, heads, d, e)


def _forward(inputs: _Inputs, plan: ChunkPlan) -> tuple[Tensor, Tensor]:
    """Outputs [n, h, e] and the states after each segment, in the plan's order."""
    c = _chunks(inputs, plan)
    reads, writes = c.k * c.entering, (c.k * c.leaving).mT
    queries, update = c.q * c.entering, c.inverse * c.beta[..., None, :]
    states, out = _empty_states(c, plan.active[0]), torch.empty_like(c.v)
    for at, active in zip(_steps(plan), plan.active, strict=True):
        state = states[:active]
        added = update[at] @ (c.v[at] - reads[at] @ state)
        out[at] = (queries[at] @ state).add_(c.attend[at] @ added)
        state.mul_(c.whole[at]).add_(writes[at] @ added)
    return plan.join(out), states


class _DeltaRule(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, plan: ChunkPlan) -> Tensor:
        ctx.save_for_backward(q, k, v, g, beta)
        ctx.plan = plan
        with torch.autocast(v.device.type, enabled=False):
            return _forward(_Inputs(q, k, v, g, beta), plan)[0].to(v.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor):
        inputs = _Inputs(*ctx.saved_tensors)
        with torch.autocast(grad.device.type, enabled=False):
            gradients = _backward(inputs, ctx.plan, grad)
        return *(x.to(of.dtype) for x, of in zip(gradients, inputs, strict=True)), None


class _Scan(NamedTuple):
    """What the passes through the steps leave for the gradients, [N, h, C, ...]."""

    added: Tensor  # U
    pulled: Tensor  # T^T dU
    to_reads: Tensor  # gradient of diag(e^c) K
    to_queries: Tensor  # gradient of diag(e^c) Q
    to_writes: Tensor  # gradient of diag(e^{c_C - c}) K
    to_whole: Tensor  # e^{c_C} times its gradient, [N, h, 1]
    residual: Tensor  # V - diag(e^c) K S


def _scan(c: _Chunks, plan: ChunkPlan, grad: Tensor) -> _Scan:
    """Forward through the steps to get each chunk's state again, then back."""
    reads, writes = c.k * c.entering, c.k * c.leaving
    queries, update = c.q * c.entering, c.inverse * c.beta[..., None, :]
    added, residual, steps = torch.empty_like(c.v), torch.empty_like(c.v), _steps(plan)
    state, before = _empty_states(c, plan.active[0]), []
    for at, active in zip(steps, plan.active, strict=True):
        state = state[:active]
        before.append(state)
        residual[at] = c.v[at] - reads[at] @ state
        added[at] = update[at] @ residual[at]
        state = (state * c.whole[at]).add_(writes[at].mT @ added[at])
    pulled = torch.empty_like(c.v)
    to_reads, to_queries, to_writes = (torch.empty_like(c.k) for _ in range(3))
    to_whole = torch.empty_like(c.whole[..., 0])
    onward = _empty_states(c, plan.active[0])  # gradient of the state after the step
    for at, active in zip(reversed(steps), reversed(plan.active), strict=True):
        state, ahead, given = before.pop(), onward[:active], grad[at]
        to_added = (c.attend[at].mT @ given).add_(writes[at] @ ahead)
        pulled[at] = c.inverse[at].mT @ to_added
        to_residual = pulled[at] * c.beta[at][..., None]
        to_queries[at] = given @ state.mT
        to_reads[at] = (to_residual @ state.mT).neg_()
        to_writes[at] = added[at] @ ahead.mT
        to_whole[at] = (state * ahead).sum((-2, -1))[..., None] * c.whole[at][..., 0]
        ahead.mul_(c.whole[at]).add_(queries[at].mT @ given).sub_(reads[at].mT @ to_residual)
    return _Scan(added, pulled, to_reads, to_queries, to_writes, to_whole, residual)


def _backward(inputs: _Inputs, plan: ChunkPlan, grad: Tensor) -> tuple[Tensor, ...]:
    """Gradients of q, k, v, g, beta in fp32."""
    c = _chunks(inputs, plan)
    grad = plan.cut(at_least_fp32(grad))
    scan = _scan(c, plan, grad)
    to_attend = (grad @ scan.added.mT).tril_()
    to_lower = (scan.pulled @ scan.added.mT).tril_(-1).neg_()  # of A
    to_beta = (scan.pulled * scan.residual).sum(-1) + (to_lower * c.lower).sum(-1)
    to_lower.mul_(c.beta[..., None])
    # Each exponent is c_i - c_j of two tokens, or of one and the chunk's end.
    weighed = to_attend * c.attend + to_lower * c.lower
    entering = (scan.to_queries * c.q + scan.to_reads * c.k).sum(-1) * c.entering[..., 0]
    leaving = (scan.to_writes * c.k).sum(-1) * c.leaving[..., 0]
    to_total = weighed.sum(-1) - weighed.sum(-2) + entering - leaving
    to_total[..., -1:] += leaving.sum(-1, keepdim=True) + scan.to_whole
    to_g = to_total.flip(-1).cumsum(-1).flip(-1)
    to_attend.mul_(c.decay)
    to_lower.mul_(c.decay)
    to_q = (to_attend @ c.k).add_(scan.to_queries * c.entering)
    to_k = (to_attend.mT @ c.q).add_((to_lower + to_lower.mT) @ c.k)
    to_k.add_(scan.to_reads * c.entering).add_(scan.to_writes * c.leaving)
    to_v = scan.pulled * c.beta[..., None]
    heads = inputs.q.shape[1]
    to_q, to_k = (plan.join(x.unflatten(1, (heads, -1)).sum(2)) for x in (to_q, to_k))
    to_q = _through_unit(inputs.q, to_q * inputs.q.shape[-1] ** -0.5)
    to_k = _through_unit(inputs.k, to_k)
    return to_q, to_k, *(plan.join(x) for x in (to_v, to_g, to_beta))


def _through_unit(x: Tensor, grad: Tensor) -> Tensor:
    """The gradient of x from that of x divided by its length."""
    unit_x, factor = unit(at_least_fp32(x))
    return (grad - unit_x * (unit_x * grad).sum(-1, keepdim=True)).mul_(factor)
