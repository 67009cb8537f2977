"""Attention over segments against dense masks: any lengths on the CPU, torch's varlen kernel on CUDA."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from torchtune_qwenvl.modules.attention import Segments, segment_attention


def dense(q, k, v, lengths, causal):
    """The same with a mask [n, n] and expanded heads, in fp64."""
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths)).to(q.device)
    mask = owner[:, None] == owner
    if causal:
        mask = mask.tril()
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    q, k, v = (x.double().transpose(0, 1) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(0, 1)


def inputs(lengths, heads, kv_heads, d, dtype=torch.float32, device="cpu"):
    shapes = [(sum(lengths), h, d) for h in (heads, kv_heads, kv_heads)]
    return [torch.randn(shape, dtype=dtype, device=device, requires_grad=True) for shape in shapes]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([1, 2, 3, 8, 8, 8, 21]), min_size=1, max_size=8),
    heads=st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]),
    causal=st.booleans(),
)
def test_equals_a_dense_mask_forward_and_backward(lengths, heads, causal):
    q, k, v = inputs(lengths, *heads, d=8)
    out = segment_attention(q, k, v, Segments.of(lengths), causal)
    expected = dense(q, k, v, lengths, causal)
    assert (out - expected).abs().max() <= 2e-6
    weights = torch.randn_like(out)
    ours = torch.autograd.grad((out * weights).sum(), (q, k, v))
    theirs = torch.autograd.grad((expected * weights).sum(), (q, k, v))
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() <= 1e-5


@pytest.mark.parametrize("lengths", [[64, 64, 16], [600], [600, 8]])
def test_bf16_on_the_cpu(lengths):
    q, k, v = inputs(lengths, 4, 2, d=16, dtype=torch.bfloat16)
    out = segment_attention(q, k, v, Segments.of(lengths), True)
    expected = dense(q, k, v, lengths, True)
    assert out.dtype == torch.bfloat16 and (out - expected).norm() <= 0.01 * expected.norm()


def test_rows_of_a_batch_are_equal_segments():
    rows, made = Segments.rows(3, 5), Segments.of([5, 5, 5])
    assert (rows.lengths, rows.longest, rows.runs) == (made.lengths, made.longest, made.runs)
    assert torch.equal(rows.cu_seqlens, made.cu_seqlens) and rows.cu_seqlens.dtype == torch.int32


def test_equal_neighbours_share_a_call():
    assert Segments.of([64, 64, 32, 64, 16]).runs == ((2, 64), (1, 32), (1, 64), (1, 16))
    assert Segments.of([64, 64, 32]).cu_seqlens.tolist() == [0, 64, 128, 160]


@pytest.mark.parametrize("lengths", [[], [4, 0, 2]])
def test_empty_segments_are_refused(lengths):
    with pytest.raises(ValueError, match="at least 1, got"):
        Segments.of(lengths)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("heads", "d"), [((16, 16), 80), ((16, 2), 128)])
def test_varlen_kernel_on_cuda(heads, d, causal):
    lengths = [64] * 5 + [32, 16, 300, 1]
    q, k, v = inputs(lengths, *heads, d=d, dtype=torch.bfloat16, device="cuda")
    out = segment_attention(q, k, v, Segments.of(lengths, "cuda"), causal)
    expected = dense(q, k, v, lengths, causal)
    assert (out - expected).norm() <= 0.01 * expected.norm()
    weights = torch.randn_like(out)
    ours = torch.autograd.grad((out * weights).sum(), (q, k, v))
    theirs = torch.autograd.grad((expected * weights).sum(), (q, k, v))
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).norm() <= 0.02 * other.norm()
