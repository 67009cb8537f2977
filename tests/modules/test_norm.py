"""RMSNorm against its formula in fp64, forward and backward, and what it keeps for the backward pass."""

import pytest
import torch

from torchtune_qwenvl.modules.norm import RMSNorm


def make(dtype=torch.float32, device="cpu"):
    norm = RMSNorm(24, eps=1e-3).to(device, dtype)
    norm.scale.data.uniform_(0.5, 1.5)
    return norm, torch.randn(3, 7, 24, device=device).to(dtype).requires_grad_()


def by_formula(norm, x):
    x = x.double()
    return x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.scale.double()


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 3e-7), (torch.bfloat16, 4e-3)])
def test_value_and_gradients(dtype, bound, compiled):
    norm, x = make(dtype)
    called = torch.compile(norm, backend="aot_eager") if compiled else norm
    out, expected = called(x), by_formula(norm, x)
    assert out.dtype == dtype and (out - expected).norm() <= bound * expected.norm()
    weights = torch.randn(x.shape).to(dtype)
    ours = torch.autograd.grad((out * weights).sum(), (x, norm.scale))
    theirs = torch.autograd.grad((expected * weights).sum(), (x, norm.scale))
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == dtype and (one - other).norm() <= bound * other.norm()


def test_gradcheck():
    norm, x = make(torch.float64)
    assert torch.autograd.gradcheck(lambda x, scale: norm(x), (x, norm.scale))


def test_frozen_scale_and_frozen_input():
    norm, x = make()
    norm.requires_grad_(False)
    (gradient,) = torch.autograd.grad(norm(x).sum(), x)
    assert gradient.any()
    assert not norm(x.detach()).requires_grad


def test_keeps_the_input_and_one_number_per_token():
    norm, x = make(torch.bfloat16)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        norm(x)
    assert sorted(kept) == [21, 24, x.numel()]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("scale", [torch.bfloat16, torch.float32])
def test_on_cuda(scale):
    norm, x = make(torch.bfloat16, "cuda")
    norm.to(scale)
    expected = by_formula(norm, x)
    assert (norm(x) - expected).norm() <= 4e-3 * expected.norm()
