"""The loss against torch's cross-entropy: value and gradient, in fp32 and bf16, in any number of pieces."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torchtune_qwenvl.modules import loss as module
from torchtune_qwenvl.modules.batch import labelled_positions
from torchtune_qwenvl.modules.loss import chunked_loss


@pytest.mark.parametrize("scratch", [1, 200, 2**23])
@pytest.mark.parametrize("chunk", [3, 100])
def test_equals_torchs_cross_entropy(monkeypatch, scratch, chunk):
    monkeypatch.setitem(module._SCRATCH, "cpu", scratch)
    head = nn.Linear(6, 50, dtype=torch.float64)
    states = torch.randn(11, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 50, (11,))
    loss = chunked_loss(states, targets, head, chunk)
    expected = F.cross_entropy(head(states), targets, reduction="sum")
    assert loss.dtype == torch.float32
    assert (loss - expected).abs() <= 1e-5 * expected
    leaves = (states, head.weight, head.bias)
    ours, theirs = torch.autograd.grad(loss * 0.3, leaves), torch.autograd.grad(expected * 0.3, leaves)
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).norm() <= 1e-6 * other.norm()


def test_bf16_logits_are_upcast_before_anything_else():
    logits = (8 * torch.randn(20, 300)).bfloat16().requires_grad_()
    targets = torch.randint(0, 300, (20,))
    expected = F.cross_entropy(logits.float(), targets, reduction="sum")
    loss = chunked_loss(logits, targets, nn.Identity(), 100)
    assert torch.allclose(loss, expected, rtol=1e-6)
    gradients = [torch.autograd.grad(x / 7, logits)[0].float() for x in (loss, expected)]
    assert (gradients[0] - gradients[1]).norm() <= 1e-3 * gradients[1].norm()


def test_large_logits_do_not_overflow():
    logits = torch.tensor([[1e4, -1e4, 0.0]], requires_grad=True)
    loss = chunked_loss(logits, torch.tensor([1]), nn.Identity(), 1)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss == 2e4 and gradient.tolist() == [[1, -1, 0]]


def test_nothing_labelled_gives_a_zero_with_a_graph():
    head = nn.Linear(6, 50)
    loss = chunked_loss(torch.randn(0, 6), torch.zeros(0, dtype=torch.int64), head, 4)
    loss.backward()
    assert loss == 0 and not head.weight.grad.any()


def test_positions_are_those_before_a_label_and_never_cross_rows():
    labels = torch.tensor([[-100, 5, -100, 6], [-100, -100, 7, -100]])
    assert labelled_positions(labels).tolist() == [0, 2, 5]


def test_a_loss_of_the_users_in_chunks():
    """Per position, summed over chunks; gradients are those of the whole."""
    states, head = torch.randn(7, 4, requires_grad=True), nn.Linear(4, 9)
    targets = torch.randint(9, (7,))
    smooth = nn.CrossEntropyLoss(reduction="none", label_smoothing=0.1)
    for chunk in (2, 7):
        found = torch.autograd.grad(chunked_loss(states, targets, head, chunk, smooth), [states, head.weight])
        expected = torch.autograd.grad(smooth(head(states), targets).sum(), [states, head.weight])
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other)
    none = chunked_loss(states[:0], targets[:0], head, 2, smooth)
    assert none == 0 and torch.autograd.grad(none, head.weight)[0].abs().sum() == 0
    with pytest.raises(ValueError, match=r"one loss per position.*reduction: none"):
        chunked_loss(states, targets, head, 7, nn.CrossEntropyLoss())


@pytest.mark.parametrize("scratch", [1, 200, 2**23])
@pytest.mark.parametrize("chunk", [3, 100])
@pytest.mark.parametrize("own", [False, True])
def test_weights_multiply_the_losses(monkeypatch, scratch, chunk, own):
    """Value and gradients of sum(weight * cross-entropy); bit for bit the plain sum if all weights are 1."""
    monkeypatch.setitem(module._SCRATCH, "cpu", scratch)
    head = nn.Linear(6, 50, dtype=torch.float64)
    states = torch.randn(11, 6, dtype=torch.float64, requires_grad=True)
    targets, weights = torch.randint(0, 50, (11,)), torch.rand(11) * 3
    weights[2] = 0
    function = nn.CrossEntropyLoss(reduction="none") if own else None
    loss = chunked_loss(states, targets, head, chunk, function, weights)
    expected = (F.cross_entropy(head(states), targets, reduction="none") * weights).sum()
    assert (loss - expected).abs() <= 1e-5 * expected
    leaves = (states, head.weight, head.bias)
    ours, theirs = torch.autograd.grad(loss * 0.3, leaves), torch.autograd.grad(expected * 0.3, leaves)
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).norm() <= 1e-6 * other.norm()
    plain = chunked_loss(states, targets, head, chunk, function)
    ones = chunked_loss(states, targets, head, chunk, function, torch.ones(11))
    assert torch.equal(plain, ones)
    for one, other in zip(torch.autograd.grad(ones, leaves), torch.autograd.grad(plain, leaves), strict=True):
        assert torch.equal(one, other)
