"""Frequencies of a stretched context, by the rules that transformers has for `rope_type`.

    scaled = scaled_frequencies(128, 1e6, {"rope_type": "yarn", "factor": 4.0, "original_length": 32768, ...})
    AxialRotary(scaled.frequencies, axes, scaled.scale, by_length=scaled.by_length)

"dynamic" and "longrope" choose by the longest position of a batch, the others do not look at it. f is half
the rotated width of a head. Source of all formulas: transformers, `modeling_rope_utils.py`, whose order of
operations is kept, so that the frequencies are the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchtune_qwenvl.modules.rope import inverse_frequencies

ByLength = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ScaledFrequencies:
    """What `AxialRotary` needs.

    Attributes:
        frequencies: [f], fp32, on the host.
        scale: factor on cos and sin.
        by_length: (number of positions, a tensor) -> frequencies [f] on its device, instead of `frequencies`;
            None: they do not depend on it.
    """

    frequencies: Tensor
    scale: float = 1.0
    by_length: ByLength | None = None


def linear(width: int, theta: float, *, factor: float) -> ScaledFrequencies:
    """Every frequency divided by `factor`: positions are interpolated (Chen et al., arXiv:2306.15595)."""
    return ScaledFrequencies(inverse_frequencies(width, theta) / factor)


def dynamic(width: int, theta: float, *, factor: float, length: int) -> ScaledFrequencies:
    """A base that grows with the positions beyond `length` (dynamic NTK); no change within it."""

    def of(positions: Tensor) -> Tensor:
        longest = torch.clamp(positions, min=length)
        base = theta * ((factor * longest / length) - (factor - 1)) ** (width / (width - 2))
        exponents = torch.arange(0, width, 2, dtype=torch.float, device=positions.device) / width
        return 1.0 / base**exponents

    return ScaledFrequencies(inverse_frequencies(width, theta), by_length=of)


def llama3(
    width: int,
    theta: float,
    *,
    factor: float,
    original_length: int,
    low_freq_factor: float,
    high_freq_factor: float,
) -> ScaledFrequencies:
    """Waves longer than `original_length / low_freq_factor` are stretched, those shorter than
    `original_length / high_freq_factor` stay, those in between are blended (Llama 3.1)."""
    plain = inverse_frequencies(width, theta)
    waves = 2 * math.pi / plain
    longest, shortest = original_length / low_freq_factor, original_length / high_freq_factor
    scaled = torch.where(waves > longest, plain / factor, plain)
    share = (original_length / waves - low_freq_factor) / (high_freq_factor - low_freq_factor)
    blended = (1 - share) * scaled / factor + share * scaled
    return ScaledFrequencies(torch.where((waves < shortest) | (waves > longest), scaled, blended))


def longrope(
    width: int,
    theta: float,
    *,
    factor: float,
    original_length: int,
    short_factor: Sequence[float],
    long_factor: Sequence[float],
    attention_factor: float | None = None,
) -> ScaledFrequencies:
    """A divisor per frequency, of two sets: one within `original_length`, one beyond (arXiv:2402.13753)."""
    exponents = torch.arange(0, width, 2, dtype=torch.float, device="cpu") / width
    divisors = (torch.tensor(one, dtype=torch.float, device="cpu") for one in (short_factor, long_factor))
    short, far = (1.0 / (divisor * theta**exponents) for divisor in divisors)
    if attention_factor is None:
        stretched = math.log(factor) / math.log(original_length) if factor > 1 else 0.0
        attention_factor = math.sqrt(1 + stretched)

    def of(positions: Tensor) -> Tensor:
        return torch.where(positions > original_length, far.to(positions.device), short.to(positions.device))

    return ScaledFrequencies(short, attention_factor, of)


def yarn(
    width: int,
    theta: float,
    *,
    factor: float,
    original_length: int,
    attention_factor: float | None = None,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    mscale: float | None = None,
    mscale_all_dim: float | None = None,
    truncate: bool = True,
) -> ScaledFrequencies:
    """Frequencies stretched by YaRN, and its factor on cos and sin (arXiv:2309.00071).

    Frequencies with more than `beta_fast` turns within `original_length` positions stay. Those with less than
    `beta_slow` turns are divided by `factor`. Those in between are interpolated linearly, between whole
    indices with `truncate`.
    """

    def index_of(turns: float) -> float:
        return width * math.log(original_length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    def scale_of(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    low, high = index_of(beta_fast), index_of(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    steps = torch.arange(width // 2, dtype=torch.float, device="cpu") - low
    kept = 1 - (steps / (high - low if high != low else 1e-3)).clamp(0, 1)
    turned = theta ** (torch.arange(0, width, 2, dtype=torch.float, device="cpu") / width)
    if attention_factor is None:
        both = mscale and mscale_all_dim
        attention_factor = scale_of(mscale) / scale_of(mscale_all_dim) if both else scale_of(1.0)  # type: ignore[arg-type]
    return ScaledFrequencies(1.0 / (factor * turned) * (1 - kept) + 1.0 / turned * kept, attention_factor)


RULES: Mapping[str, Callable[..., ScaledFrequencies]] = {
    "linear": linear,
    "dynamic": dynamic,
    "llama3": llama3,
    "longrope": longrope,
    "yarn": yarn,
}


def scaled_frequencies(width: int, theta: float, scaling: Mapping[str, Any]) -> ScaledFrequencies:
    """Frequencies [width / 2] by a rule.

    Args:
        width: how many values of a head are rotated.
        theta: base of the frequencies.
        scaling: `rope_type`, one of `RULES`, and the arguments of its function.
    """
    arguments = dict(scaling)
    return RULES[arguments.pop("rope_type")](width, theta, **arguments)
