"""Rotary tables and rotation against rotation matrices written out."""

import copy
import math

import pytest
import torch

from torchtune_qwenvl.modules.rope import (
    AxialRotary,
    chunked_axes,
    interleaved_axes,
    inverse_frequencies,
    rotate,
)

AXES = [0, 0, 1, 2]


def by_hand(x, positions, frequencies, axes, scale=1.0):
    """x [n, h, 2 f] in fp64, one 2 x 2 matrix per token and pair."""
    out = torch.empty_like(x, dtype=torch.float64)
    f = len(axes)
    for n, token in enumerate(x.double()):
        for i, axis in enumerate(axes):
            angle = positions[n][axis] * float(frequencies[i])
            turn = scale * torch.tensor(
                [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=torch.float64
            )
            out[n][:, [i, i + f]] = token[:, [i, i + f]] @ turn.T
    return out


def test_each_frequency_turns_by_its_axis():
    frequencies = inverse_frequencies(8, 100.0)
    rotary = AxialRotary(frequencies, AXES, scale=1.5)
    x, positions = torch.randn(6, 3, 8), torch.randint(0, 50, (6, 3))
    expected = by_hand(x, positions.tolist(), frequencies, AXES, 1.5)
    assert (rotate(x, rotary(positions)) - expected).abs().max() <= 1e-5


def test_gradient():
    rotary = AxialRotary(inverse_frequencies(8, 100.0), AXES)
    rotation = rotary(torch.randint(0, 50, (5, 3)), torch.float64)
    x = torch.randn(5, 2, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: rotate(x, rotation), (x,))


def test_fp32_tables_rotate_bf16_in_fp32():
    rotary = AxialRotary(inverse_frequencies(8, 100.0), AXES)
    x, positions = torch.randn(6, 3, 8).bfloat16(), torch.randint(0, 5000, (6, 3))
    rotated = rotate(x, rotary(positions))
    assert rotated.dtype == torch.bfloat16
    assert torch.equal(rotated, rotate(x.float(), rotary(positions)).bfloat16())
    assert rotary(positions, torch.bfloat16).cos.dtype == torch.bfloat16


def test_tables_survive_a_meta_device_and_casts():
    with torch.device("meta"):
        rotary = AxialRotary(inverse_frequencies(8, 100.0), AXES)
    positions = torch.tensor([[3, 4, 5]])
    with torch.autocast("cpu", torch.bfloat16):
        cos = copy.deepcopy(rotary)(positions).cos
    expected = torch.cos(torch.tensor([3.0, 3, 4, 5]) * inverse_frequencies(8, 100.0))
    assert torch.equal(cos[0, 0], expected)


def test_axes_and_frequencies_must_agree():
    with pytest.raises(ValueError, match="3 axes for 4 frequencies"):
        AxialRotary(inverse_frequencies(8, 100.0), [0, 1, 2])


def test_axes_in_chunks_and_in_turns():
    assert chunked_axes([2, 1, 3]) == [0, 0, 1, 2, 2, 2]
    assert interleaved_axes([4, 2, 2]) == [0, 1, 2, 0, 1, 2, 0, 0]
    # Qwen3-VL's: rows and columns at 1, 4, … and 2, 5, … below 60, the frame's time elsewhere.
    axes = interleaved_axes([24, 20, 20])
    assert axes[:60] == [0, 1, 2] * 20 and axes[60:] == [0] * 4
