"""GPUs by name: what they can do and hold. The figures are the makers' data sheets, without sparsity."""

from __future__ import annotations

from dataclasses import dataclass

from torchtune_qwenvl.arguments import nearest

GB = 1e9


@dataclass(frozen=True)
class Card:
    """A GPU, and the share of its peaks that good kernels reach.

    Attributes:
        peak: dense bf16 operations per second.
        fp32: operations per second of fp32 products.
        bandwidth: bytes per second of its memory.
        total: bytes of its memory.
        link: bytes per second that one GPU receives from others of its node.
        matmul, attention, memory: shares of these peaks that kernels reach.
        shortest: seconds of the shortest kernel.
    """

    peak: float = 989e12
    fp32: float = 67e12
    bandwidth: float = 3.35e12
    total: float = 80 * GB
    link: float = 450 * GB
    matmul: float = 0.72
    attention: float = 0.5
    memory: float = 0.8
    shortest: float = 2.5e-6

    def moving(self, moved: float) -> float:
        """Seconds of a kernel that only reads and writes so many bytes."""
        return max(moved / (self.memory * self.bandwidth), self.shortest)

    def computing(self, flops: float, moved: float, share: float, half: bool = True) -> float:
        """Seconds of a kernel by the roofline: its operations at a share of the peak, or its bytes."""
        return max(flops / (share * (self.peak if half else self.fp32)), self.moving(moved))


CARDS = {
    "h100": Card(),
    "h200": Card(bandwidth=4.8e12, total=141 * GB),
    "b200": Card(peak=2250e12, fp32=75e12, bandwidth=7.7e12, total=180 * GB, link=900 * GB),
    "a100": Card(peak=312e12, fp32=19.5e12, bandwidth=2.04e12, link=300 * GB),
    "a100-40": Card(peak=312e12, fp32=19.5e12, bandwidth=1.56e12, total=40 * GB, link=300 * GB),
    "l40s": Card(peak=362e12, fp32=91.6e12, bandwidth=0.864e12, total=48 * GB, link=32 * GB),
    "a6000": Card(peak=155e12, fp32=38.7e12, bandwidth=0.768e12, total=48 * GB, link=32 * GB),
    "rtx4090": Card(peak=165e12, fp32=82.6e12, bandwidth=1.01e12, total=24 * GB, link=32 * GB),
}


def card_named(name: str) -> Card:
    """The GPU of this name, a key of `CARDS`.

    Raises:
        ValueError: another name.
    """
    if name.lower() not in CARDS:
        raise ValueError(f"--gpu: no GPU '{name}'.{nearest(name, CARDS)} There are {', '.join(CARDS)}.")
    return CARDS[name.lower()]
