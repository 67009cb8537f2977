"""Draw the lengths of samples and the sizes of their images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.style import context
from matplotlib.ticker import FuncFormatter, NullFormatter

from torchtune_qwenvl.counted import counted
from torchtune_qwenvl.pictures.style import BLUE, GREEN, GREY, INK, ORANGE, PALE_BLUE, STYLE, save

BINS = 48


def draw_lengths(
    tokens: Sequence[int],
    visual_tokens: Sequence[int],
    images: Sequence[tuple[int, int]],
    path: Path,
    *,
    max_seq_len: int | None = None,
    max_pixels: int | None = None,
) -> None:
    """Write a PNG with a histogram of lengths, split into visual and text tokens, and the images' sizes.

    Args:
        tokens: tokens of each sample.
        visual_tokens: visual tokens of each sample.
        images: (height, width) of each image in pixels.
        path: the PNG file to write.
        max_seq_len: marked if it is within the range of lengths.
        max_pixels: area above which images are shrunk; drawn as a line.
    """
    with context(STYLE):
        figure = Figure(figsize=(12 if images else 7.5, 4.4), layout="constrained")
        ratios = [7, 5] if images else [1]
        axes = figure.subplots(1, len(ratios), squeeze=False, width_ratios=ratios)[0]
        _histogram(axes[0], np.asarray(tokens), np.asarray(visual_tokens), max_seq_len)
        if images:
            _sizes(axes[1], np.asarray(images), max_pixels)
        save(figure, path)


def _histogram(axis: Axes, tokens: np.ndarray, visual: np.ndarray, max_seq_len: int | None) -> None:
    low, high = max(1, tokens.min()), tokens.max() + 1
    wide = high > 20 * low
    step = -(-(high - low) // BINS)  # whole tokens, so that all bins cover the same number of lengths
    edges = np.geomspace(low, high, BINS + 1) if wide else np.arange(low, high + step, step)
    counts, _ = np.histogram(tokens, edges)
    # Each bar is split in the ratio of visual and text tokens of its samples.
    of_all, of_images = (np.histogram(tokens, edges, weights=w)[0] for w in (tokens, visual))
    share = np.divide(of_images, of_all, out=np.zeros(len(counts)), where=of_all > 0)
    axis.bar(edges[:-1], counts * share, np.diff(edges) * 0.94, align="edge", color=BLUE, label="visual")
    axis.bar(
        edges[:-1],
        counts * (1 - share),
        np.diff(edges) * 0.94,
        bottom=counts * share,
        align="edge",
        color=PALE_BLUE,
        label="text",
    )
    axis.set(title=f"Tokens of {counted(len(tokens), 'sample')}", xlabel="tokens", ylabel="samples")
    axis.grid(axis="x", visible=False)
    if wide:
        axis.set_xscale("log")
        axis.xaxis.set_minor_formatter(NullFormatter())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    _mark(axis, float(np.median(tokens)), "median", GREY)
    _mark(axis, float(np.percentile(tokens, 95)), "95 %", INK)
    if max_seq_len is not None and max_seq_len < high:
        _mark(axis, max_seq_len, "max_seq_len", ORANGE)
    axis.margins(y=0.12)
    axis.legend(loc="best", frameon=True, framealpha=0.9, edgecolor="white")


def _mark(axis: Axes, value: float, name: str, colour: str) -> None:
    axis.axvline(value, color=colour, linestyle="--", linewidth=1.3, label=f"{name}: {value:,.0f}")


def _sizes(axis: Axes, images: np.ndarray, max_pixels: int | None) -> None:
    heights, widths = images[:, 0], images[:, 1]
    alpha = float(np.clip(200 / len(images), 0.04, 0.5))
    axis.scatter(widths, heights, s=16, color=GREEN, alpha=alpha, linewidths=0)
    top = 1.1 * max(heights.max(), widths.max())
    axis.set(
        title=f"Size of {len(images):,} images",
        xlabel="width, pixels",
        ylabel="height, pixels",
        xlim=(0, top),
    )
    axis.set_ylim(0, top)
    axis.set_aspect("equal")
    if max_pixels is not None and max_pixels < top * top:
        across = np.linspace(max_pixels / top, top, 200)
        axis.plot(across, max_pixels / across, color=ORANGE, linestyle="--", linewidth=1.3)
        shrunk = np.mean(heights * widths > max_pixels)
        axis.plot([], [], color=ORANGE, linestyle="--", label=f"max_pixels: {shrunk:.0%} are shrunk")
        axis.legend(loc="upper right")
