"""Kernels in bf16 against fp64 on the same rounded inputs, forward and backward.

An error is the norm of the difference over the norm. bf16 has 8 bits: rounding a result once gives 1e-3 to
2e-3, and a kernel rounds a few times.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from on_gpu.rows import Row, held
from on_gpu.setting import Measurement, Setting
from torchtune_qwenvl.modules.attention import Segments, segment_attention, use_attention_backend
from torchtune_qwenvl.modules.experts.grouped import grouped_linear
from torchtune_qwenvl.modules.loss import chunked_loss
from torchtune_qwenvl.modules.norm import LayerNorm, RMSNorm
from torchtune_qwenvl.modules.rope import Rotation, rotate

LIMIT = 1.5e-2
#        head width, query heads, key/value heads, causal
HEADS = (
    (64, 16, 16, False),
    (72, 16, 16, False),
    (80, 16, 16, False),
    (128, 28, 4, True),
    (128, 32, 8, True),
)
LENGTHS = (1, 700, 64, 1, 1, 333, 8)  # segments of one token among others


def measurements(setting: Setting) -> Iterator[Measurement]:
    """Name and function of each kernel."""
    for backend in ("flash", "cudnn"):
        for width, heads, kv, causal in HEADS:
            name = f"attention {backend}, width {width}, {heads}/{kv} heads{', causal' * causal}"
            yield name, partial(_attention, setting, name, backend, width, heads, kv, causal)
        name = f"attention {backend}, another geometry each call"
        yield name, partial(_geometries, setting, name, backend)
    for name, measure in (
        ("grouped products, empty experts", _experts),
        ("RMSNorm", _rms_norm),
        ("LayerNorm", _layer_norm),
        ("RoPE", _rope),
        ("cross-entropy in chunks", _loss),
    ):
        yield name, partial(measure, setting, name)


def compared(
    setting: Setting,
    name: str,
    ours: Callable[..., Tensor],
    exact: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    limit: float = LIMIT,
) -> Row:
    """Errors of a kernel's result and of its gradients for `inputs`, against `exact` in fp64."""
    low = [x.detach().requires_grad_() for x in inputs]
    high = [x.detach().double().requires_grad_() for x in inputs]
    got, wanted = ours(*low), exact(*high)
    grad = torch.randn_like(wanted).to(got.dtype)
    given = torch.autograd.grad(got, low, grad)
    expected = torch.autograd.grad(wanted, high, grad.double())
    figures = {"forward": error(got, wanted)}
    figures["backward"] = max(error(a, b) for a, b in zip(given, expected, strict=True))

    def both() -> None:
        torch.autograd.grad(ours(*low), low, grad)

    row = held("kernels", name, figures, {"forward": limit, "backward": limit})
    row.figures["ms"] = setting.milliseconds(both)
    return row


def error(got: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over the norm."""
    return ((got.double() - wanted).norm() / wanted.norm()).item()


def random(setting: Setting, *shape: int, scale: float = 1.0) -> Tensor:
    """Normally distributed values in bf16."""
    return (scale * torch.randn(*shape, device=setting.device)).bfloat16()


def _attention(
    setting: Setting, name: str, backend: str, width: int, heads: int, kv: int, causal: bool
) -> Row:
    use_attention_backend(backend)
    lengths = [min(n, setting.size(n, 9)) for n in LENGTHS]
    segments = Segments.of(lengths, setting.device)
    q, k, v = (random(setting, sum(lengths), h, width) for h in (heads, kv, kv))
    row = compared(
        setting,
        name,
        lambda *x: segment_attention(*x, segments, causal),
        lambda *x: _exact_attention(*x, lengths, causal),
        (q, k, v),
    )
    use_attention_backend("flash")
    return row


def _exact_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], causal: bool) -> Tensor:
    found = []
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    for a, b, c in zip(*(x.split(list(lengths)) for x in (q, k, v)), strict=True):
        scores = torch.einsum("ihd,jhd->hij", a, b) * a.shape[-1] ** -0.5
        if causal:
            hidden = torch.ones_like(scores[0], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(hidden, float("-inf"))
        found.append(torch.einsum("hij,jhd->ihd", scores.softmax(-1), c))
    return torch.cat(found)


def _geometries(setting: Setting, name: str, backend: str) -> Row:
    """Milliseconds of a forward pass when every call has other segments, as packed batches have."""
    use_attention_backend(backend)
    n = setting.size(8192, 64)
    q, k, v = (random(setting, n, h, 128) for h in (28, 4, 4))
    cuts = iter(range(1, 10_000))

    def another() -> None:
        cut = next(cuts)
        lengths = [cut, n // 2 - cut, n // 4 + cut, n - n // 2 - n // 4 - cut]
        segment_attention(q, k, v, Segments.of(lengths, setting.device), True)

    same = Segments.of([n // 2, n - n // 2], setting.device)
    figures = {
        "ms, changing": setting.milliseconds(another),
        "ms, the same": setting.milliseconds(lambda: segment_attention(q, k, v, same, True)),
    }
    use_attention_backend("flash")
    return Row("kernels", name, figures=figures)


def _experts(setting: Setting, name: str) -> Row:
    e, i, o = setting.size(128, 4), setting.size(2048, 32), setting.size(1536, 48)
    rows = setting.size(32768, 40)
    counts = torch.zeros(e, dtype=torch.int64, device=setting.device)
    counts[1::2] = rows // (e // 2)  # every other expert gets nothing
    counts[-1] += rows - counts.sum()
    x, weight = random(setting, rows, i), random(setting, e, o, i, scale=i**-0.5)

    def exact(x: Tensor, weight: Tensor) -> Tensor:
        parts = x.split(counts.tolist())
        return torch.cat([part @ matrix.T for part, matrix in zip(parts, weight, strict=True)])

    return compared(setting, name, lambda *a: grouped_linear(*a, counts), exact, (x, weight))


def _rms_norm(setting: Setting, name: str) -> Row:
    width = setting.size(3584, 64)
    norm = RMSNorm(width, 1e-6).to(setting.device)
    exact = partial(F.rms_norm, normalized_shape=(width,), eps=1e-6)
    return _norm(setting, name, norm, exact, width)


def _layer_norm(setting: Setting, name: str) -> Row:
    width = setting.size(1152, 64)
    norm = LayerNorm(width, 1e-6).to(setting.device, torch.bfloat16)
    exact = partial(F.layer_norm, normalized_shape=(width,), eps=1e-6)
    return _norm(setting, name, norm, exact, width)


def _norm(setting: Setting, name: str, norm: Any, exact: Any, width: int) -> Row:
    x = random(setting, setting.size(8192, 12), width, scale=3.0)
    row = compared(setting, name, norm, exact, (x,))
    assert norm(x).dtype == torch.bfloat16, "a norm that returns fp32 makes what follows slow"
    return row


def _rope(setting: Setting, name: str) -> Row:
    n, width = setting.size(8192, 12), 128
    angles = torch.rand(n, 1, width // 2, device=setting.device, dtype=torch.float64) * 6
    tables = Rotation(*(x.bfloat16() for x in (angles.cos(), angles.sin())))

    def exact(x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=-1)
        cos, sin = tables.cos.double(), tables.sin.double()
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    return compared(setting, name, lambda x: rotate(x, tables), exact, (random(setting, n, 28, width),))


def _loss(setting: Setting, name: str) -> Row:
    k, width, vocabulary = setting.size(3000, 40), setting.size(2048, 32), setting.size(151936, 300)
    targets = torch.randint(vocabulary, (k,), device=setting.device)
    states, head = random(setting, k, width), random(setting, vocabulary, width, scale=width**-0.5)

    def ours(states: Tensor, head: Tensor) -> Tensor:
        return chunked_loss(states, targets, lambda x: F.linear(x, head), chunk_tokens=k // 2)

    def exact(states: Tensor, head: Tensor) -> Tensor:
        return F.cross_entropy(states @ head.T, targets, reduction="sum")

    return compared(setting, name, ours, exact, (states, head))
