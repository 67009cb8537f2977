"""Rotary pairs as data: halves or neighbours, all of a head or its first values; against complex numbers."""

import pytest
import torch

from torchtune_qwenvl.modules.rope import AxialRotary, inverse_frequencies, rotate

N, HEADS, HEAD = 9, 3, 16


def turned(x, angles, neighbours):
    """The pairs as complex numbers, multiplied by exp(i angle); the rest of the head as it was."""
    f = angles.shape[-1]
    first, second = (
        (x[..., 0 : 2 * f : 2], x[..., 1 : 2 * f : 2]) if neighbours else (x[..., :f], x[..., f : 2 * f])
    )
    z = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)[:, None]
    pairs = torch.stack([z.real, z.imag], -1).flatten(-2) if neighbours else torch.cat([z.real, z.imag], -1)
    return torch.cat([pairs, x[..., 2 * f :]], -1)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("neighbours", [False, True])
@pytest.mark.parametrize("width", [HEAD, HEAD // 2])
def test_rotation_and_gradient(neighbours, width, compiled):
    axes = [0, 1, 2, 0, 1, 2, 0, 1][: width // 2]
    frequencies = inverse_frequencies(width, 100.0)
    rotary = AxialRotary(frequencies, axes, neighbours=neighbours)
    positions = torch.randint(0, 50, (N, 3))
    angles = positions[:, axes] * frequencies
    x = torch.randn(N, HEADS, HEAD, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    called = torch.compile(rotate, backend="aot_eager") if compiled else rotate
    ours, expected = called(x, rotary(positions)), turned(y, angles, neighbours)
    assert (ours - expected).abs().max() <= 2e-6
    weights = torch.randn_like(ours)
    (ours * weights).sum().backward()
    (expected * weights).sum().backward()
    assert (x.grad - y.grad).abs().max() <= 2e-6
    assert torch.equal(ours[..., width:], x[..., width:])
