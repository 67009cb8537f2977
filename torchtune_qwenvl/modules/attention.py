"""Attention over segments (frames, windows, documents, padded rows), without any mask.

Tokens are one flat sequence. Neighbours that attend to each other form a segment. Three images with windows
of 64, 64, 32 | 64 | 16 tokens are five segments in n = 240 tokens. Neighbouring segments of equal length
share one batched call:

    lengths     64  64  32  64  16
    runs        2x64    1x32  1x64  1x16        -> four SDPA calls; on CUDA in bf16 one varlen kernel instead

n tokens, b segments of one length l, h heads, g key/value heads, d head width.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

ATTENTION_BACKENDS = ("flash", "cudnn")
_HALF_DTYPES = (torch.bfloat16, torch.float16)
# On short segments torch's CPU kernel is slower in bf16 than in fp32. For 32 windows of 64 tokens and 8 heads
# of width 64, forward and backward take 46 ms in bf16, 19 ms in fp32 including the casts. From 1,024 tokens
# on bf16 is faster.
_CPU_FP32_UP_TO = 512
_VARLEN_SHARES_KV_HEADS = "enable_gqa" in inspect.signature(varlen_attn).parameters  # absent in torch 2.11


@dataclass(eq=False)  # not frozen: of a frozen one torch 2.11 compiles anew for each number of runs
class Segments:
    """Which tokens attend to each other: those of the same segment.

    Attributes:
        lengths: tokens per segment, in order, on the host.
        cu_seqlens: int32 [segments + 1] boundaries 0 .. n on the tokens' device.
        longest: the maximum of `lengths`.
        runs: (number of segments, their length) for each run of neighbours of equal length.
    """

    lengths: tuple[int, ...]
    cu_seqlens: Tensor
    longest: int
    runs: tuple[tuple[int, int], ...]

    @classmethod
    def of(
        cls,
        lengths: Sequence[int],
        device: torch.device | str = "cpu",
        boundaries: Tensor | None = None,
    ) -> Segments:
        """Segments of these lengths, each at least 1.

        Args:
            lengths: tokens per segment.
            device: where the tokens are.
            boundaries: `boundaries_of(lengths)` if it is on the device already.
        """
        if not lengths or min(lengths) < 1:
            raise ValueError(f"segments need one or more lengths of at least 1, got {list(lengths)}")
        if boundaries is None:
            boundaries = boundaries_of(lengths).to(device, non_blocking=True)
        runs = tuple((len(list(same)), length) for length, same in groupby(lengths))
        return cls(tuple(lengths), boundaries, max(lengths), runs)

    @classmethod
    def rows(cls, b: int, s: int, device: torch.device | str = "cpu") -> Segments:
        """The b rows of a batch padded to s tokens. Causal attention never sees the padding on the right."""
        boundaries = torch.arange(0, (b + 1) * s, s, dtype=torch.int32, device=device)
        return cls((s,) * b, boundaries, s, ((b, s),))

    def places(self) -> Tensor:
        """Index of every token in its segment, int64 [n]: lengths 3, 2 give 0 1 2 0 1."""
        device = self.cu_seqlens.device
        runs = [torch.arange(length, device=device).repeat(b) for b, length in self.runs]
        return torch.cat(runs)


def use_attention_backend(name: str) -> None:
    """Choose the kernel of attention on CUDA in bf16 and fp16, for the whole process.

    From torch 2.15 on, its varlen kernel prefers cuDNN on Hopper and Blackwell. cuDNN may build its plans
    again for a batch of another geometry (pytorch/pytorch#191576), and every packed batch has another one.

    Args:
        name: "flash" or "cudnn"; cuDNN is used where torch can, else flash.

    Raises:
        ValueError: another name.
    """
    if name not in ATTENTION_BACKENDS:
        raise ValueError(f"attention_backend: expected one of {', '.join(ATTENTION_BACKENDS)}, got '{name}'.")
    torch.backends.cuda.enable_cudnn_sdp(name == "cudnn")


def boundaries_of(lengths: Iterable[int]) -> Tensor:
    """Where segments of these lengths begin and end, int32 [segments + 1] on the host: 0 .. n."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device="cpu")


def segment_attention(
    q: Tensor, k: Tensor, v: Tensor, segments: Segments, causal: bool, dropout: float = 0.0
) -> Tensor:
    """Attention of every token within its segment.

    Args:
        q: queries [n, h, d].
        k: keys [n, g, d]; g divides h, and h / g neighbouring query heads share a key head.
        v: values [n, g, d].
        segments: lengths that sum to n.
        causal: a token attends only to itself and to earlier tokens of its segment.
        dropout: share of attention weights that are dropped.

    Returns:
        [n, h, d], in q's dtype.
    """
    if q.is_cuda:
        _check_dtypes(q, k, v)
    if is_one_kernel(q, dropout):
        return _varlen(q, k, v, segments, causal)
    if len(segments.runs) == 1:
        return _equal_lengths(q, k, v, segments.runs[0], causal, dropout)
    sizes = [b * length for b, length in segments.runs]
    parts = zip(q.split(sizes), k.split(sizes), v.split(sizes), segments.runs, strict=True)
    return torch.cat([_equal_lengths(*part, causal, dropout) for part in parts])


def is_one_kernel(q: Tensor, dropout: float) -> bool:
    """Whether one kernel takes segments of all lengths, so that their number changes nothing on the host."""
    return q.is_cuda and q.dtype in _HALF_DTYPES and not dropout  # torch's varlen kernel has no dropout


def _equal_lengths(
    q: Tensor, k: Tensor, v: Tensor, run: tuple[int, int], causal: bool, dropout: float
) -> Tensor:
    dtype = q.dtype
    if not q.is_cuda and dtype in _HALF_DTYPES and run[1] <= _CPU_FP32_UP_TO:
        q, k, v = q.float(), k.float(), v.float()
    q, k, v = (x.unflatten(0, run).transpose(1, 2) for x in (q, k, v))  # [b, h or g, l, d]
    shared = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=causal, enable_gqa=shared)
    return out.transpose(1, 2).flatten(0, 1).to(dtype)


def _check_dtypes(q: Tensor, k: Tensor, v: Tensor) -> None:
    """A norm or a rotation that returns fp32 under autocast makes attention several times slower."""
    expected = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else q.dtype
    assert q.dtype == k.dtype == v.dtype == expected, (q.dtype, k.dtype, v.dtype, expected)


def _varlen(q: Tensor, k: Tensor, v: Tensor, segments: Segments, causal: bool) -> Tensor:
    options: dict[str, Any] = {"window_size": (-1, 0) if causal else (-1, -1)}
    if q.shape[1] != k.shape[1]:
        if _VARLEN_SHARES_KV_HEADS:
            options["enable_gqa"] = True
        else:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    cu, longest = segments.cu_seqlens, segments.longest
    out = varlen_attn(q, k, v, cu, cu, longest, longest, **options)
    assert isinstance(out, Tensor)
    return out
