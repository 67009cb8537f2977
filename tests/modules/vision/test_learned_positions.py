"""Learned positions against torch's own two-dimensional interpolation."""

import pytest
import torch
import torch.nn.functional as F

from torchtune_qwenvl.modules.vision.learned_positions import LearnedPositions, bicubic, bilinear

SIDE, WIDTH, MERGE, CPU = 6, 5, 2, torch.device("cpu")


def reference(table, h, w):
    """Every patch sampled from the table by `grid_sample`, in merge-block order."""
    rows, columns = (torch.arange(h)[:, None].expand(h, w), torch.arange(w).expand(h, w))
    blocks = torch.stack([columns, rows], -1).view(h // MERGE, MERGE, w // MERGE, MERGE, 2)
    points = (blocks.transpose(1, 2).reshape(-1, 2) + 0.5) / torch.tensor([w, h]) * 2 - 1
    picture = table.view(SIDE, SIDE, WIDTH).permute(2, 0, 1)[None]
    options = {"mode": "bicubic", "align_corners": False, "padding_mode": "border"}
    return F.grid_sample(picture, points[None, :, None], **options)[0, :, :, 0].T


@pytest.mark.parametrize("grids", [[(1, 6, 6)], [(1, 2, 2)], [(1, 10, 4), (3, 4, 26), (1, 10, 4)]])
def test_positions_and_their_gradient_equal_grid_sample(grids):
    positions = LearnedPositions(side=SIDE, width=WIDTH, stretch=bicubic)
    table = positions.weight.detach().clone().requires_grad_()
    expected = torch.cat([reference(table, h, w) for t, h, w in grids for _ in range(t)])
    ours = positions(grids, MERGE, CPU)
    assert ours.dtype == torch.float32 and ours.shape == expected.shape
    assert (ours - expected).abs().max() <= 1e-6 * expected.abs().max()
    weights = torch.randn_like(expected)
    (ours * weights).sum().backward()
    (expected * weights).sum().backward()
    assert (positions.weight.grad - table.grad).norm() <= 1e-6 * table.grad.norm()


def test_a_grid_of_the_tables_size_is_the_table():
    positions = LearnedPositions(side=SIDE, width=WIDTH, stretch=bicubic)
    assert (
        positions([(1, SIDE, SIDE)], 1, CPU) - positions.weight
    ).abs().max() <= 1e-6 * positions.weight.abs().max()


def test_a_bf16_table_is_stretched_in_fp32_also_under_autocast():
    positions = LearnedPositions(side=SIDE, width=WIDTH, stretch=bicubic).bfloat16()
    exact = LearnedPositions(side=SIDE, width=WIDTH, stretch=bicubic)
    exact.load_state_dict(positions.state_dict())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(positions([(1, 8, 4)], MERGE, CPU), exact([(1, 8, 4)], MERGE, CPU))


@pytest.mark.parametrize(("length", "side"), [(2, 6), (6, 6), (46, 6), (60, 48), (1, 6)])
def test_bilinear_goes_from_corner_to_corner(length, side):
    table = torch.randn(1, WIDTH, side, dtype=torch.float64)
    expected = F.interpolate(table, size=length, mode="linear", align_corners=True)[0].T
    matrix = bilinear(length, side)
    assert matrix.dtype == torch.float32
    assert (matrix.double() @ table[0].T - expected).abs().max() <= 1e-6
