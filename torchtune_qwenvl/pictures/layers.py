"""Accuracy over the layers of an encoder, as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.style import context
from matplotlib.ticker import MaxNLocator, PercentFormatter

from torchtune_qwenvl.pictures.style import BLUE, GREEN, GREY, INK, MIST, ORANGE, RED, STYLE, save

COLOURS = (BLUE, ORANGE, GREEN, RED, INK)


def draw_layers(
    curves: Mapping[str, Sequence[tuple[int, float]]],
    best: tuple[int, float],
    chance: float,
    images: int,
    path: Path,
    merged: int | None = None,
) -> None:
    """Write a PNG with a line for each curve; curves come in pairs, the second one of a pair is dashed.

    Args:
        curves: label -> [(layer, share of right answers)].
        best: the point to mark.
        chance: share that needs no features, drawn as a line.
        images: number of held-out images.
        path: the PNG file to write.
        merged: the place on the axis that stands for tokens after the merger, one right of the last layer.
    """
    with context(STYLE):
        figure = Figure(figsize=(7.5, 4.4), layout="constrained")
        axis = figure.subplots()
        for number, (label, points) in enumerate(curves.items()):
            axis.plot(
                *zip(*points, strict=True),
                color=COLOURS[number // 2 % len(COLOURS)],
                linestyle="--" if number % 2 else "-",
                linewidth=1.4 if number % 2 else 2,
                marker="o",
                markersize=4,
                label=label,
            )
        axis.axhline(chance, color=GREY, linestyle=":", linewidth=1.3, label="largest class")
        axis.plot(*best, marker="o", markersize=13, markerfacecolor="none", markeredgecolor=INK, linestyle="")
        axis.set(title=f"Right answers on {images:,} held-out images", xlabel="layer", ylim=(0, 1.04))
        axis.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        if merged is not None:
            axis.axvspan(merged - 0.5, merged + 0.5, color=MIST, zorder=0)
            ticks = [tick for tick in axis.get_xticks() if 0 <= tick < merged - 0.5]
            axis.set_xticks([*ticks, merged], [*(f"{tick:.0f}" for tick in ticks), "merged"])
        axis.yaxis.set_major_formatter(PercentFormatter(1))
        axis.legend(loc="best")
        save(figure, path)
