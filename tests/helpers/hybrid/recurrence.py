"""The gated delta rule and the convolution, written out step by step."""

import torch
import torch.nn.functional as F
from torch import Tensor

NAMES = ("q", "k", "v", "g", "beta")


def inputs(lengths, *, m=2, h=4, d=16, e=8, seed=0, dtype=torch.float64) -> tuple[Tensor, ...]:
    """Random q, k [n, m, d], v [n, h, e], g and beta [n, h] that require gradients."""
    n, draw = sum(lengths), torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    g = -normal(n, h).square() * torch.tensor([3.0, 0.3, 0.01, 1.0], dtype=torch.float64)[:h]
    values = (normal(n, m, d), normal(n, m, d), normal(n, h, e), g, normal(n, h).sigmoid())
    return tuple(x.to(dtype).requires_grad_() for x in values)


def delta_rule(q, k, v, g, beta, lengths) -> tuple[Tensor, Tensor]:
    """Results [n, h, e], and the states after each segment."""
    outputs, states = [], []
    for segment in zip(*(x.split(list(lengths)) for x in (q, k, v, g, beta)), strict=True):
        state = q.new_zeros(v.shape[1], q.shape[-1], v.shape[-1])
        for qt, kt, vt, gt, bt in zip(*segment, strict=True):
            qt, kt = (
                (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()).repeat_interleave(len(vt) // len(x), 0)
                for x in (qt, kt)
            )
            state = state * gt.exp()[:, None, None]
            update = bt[:, None] * (vt - torch.einsum("hde,hd->he", state, kt))
            state = state + torch.einsum("hd,he->hde", kt, update)
            outputs.append(torch.einsum("hde,hd->he", state, qt) * q.shape[-1] ** -0.5)
        states.append(state)
    return torch.stack(outputs), torch.stack(states)


def convolution(x, weight, lengths) -> Tensor:
    taps = weight.shape[1]
    padded = [F.pad(part.T[None], (taps - 1, 0)) for part in x.split(list(lengths))]
    mixed = [F.conv1d(part, weight[:, None], groups=len(weight))[0].T for part in padded]
    return F.silu(torch.cat(mixed))
