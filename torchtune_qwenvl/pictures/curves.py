"""Draw a run's curves over its steps: losses, learning rates, gradient norm, speed, validation metrics."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.style import context
from matplotlib.ticker import EngFormatter, LogFormatter, MaxNLocator, PercentFormatter

from torchtune_qwenvl.pictures.style import BLUE, GREEN, INK, ORANGE, PALE_BLUE, RED, STYLE, save

Curve = Sequence[tuple[int, float]]
Curves = Mapping[str, Curve]

POINTS = {"linewidth": 2, "marker": "o", "markersize": 4.5}
COLOURS = (GREEN, ORANGE, BLUE, RED, INK)
# A curve of at least MANY points also gets a running mean over about 1 / WINDOWS of them.
MANY, WINDOWS = 60, 40


def draw_curves(
    curves: Curves,
    path: Path,
    marks: Mapping[str, float] | None = None,
    titles: Mapping[str, str] | None = None,
) -> None:
    """Write a PNG with a panel for each kind of metric that was logged; no file if there is none.

    Args:
        curves: names as the recipe logs them (`loss`, `val_loss`, `lr_decoder`, …) -> [(step, value)].
        path: the PNG file to write.
        marks: label -> value of dashed lines in the panel of validation metrics.
        titles: title of a panel -> another title for it.
    """
    panels = [panel for panel in PANELS if any(map(panel.wants, curves))]
    if not panels:
        return
    with context(STYLE):
        rows = -(-len(panels) // 2)
        figure = Figure(figsize=(10, 3.6 * rows + 0.2), layout="constrained")
        axes = list(figure.subplots(rows, 2, squeeze=False).flat)
        for axis, panel in zip(axes, panels, strict=False):
            panel.draw(axis, curves, marks or {})
            axis.set(xlabel="step", xlim=(0, None))
            axis.set_title((titles or {}).get(axis.get_title("left"), axis.get_title("left")))
            axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            if axis.get_legend_handles_labels()[1]:
                axis.legend(loc="best")
        for axis in axes[len(panels) :]:
            axis.set_axis_off()
        save(figure, path)


def _losses(axis: Axes, curves: Curves, marks: Mapping[str, float]) -> None:
    _line(axis, curves.get("loss"), color=PALE_BLUE, linewidth=1, label="training")
    _mean_line(axis, curves.get("loss"), color="#7c93ee", linewidth=1.4, label="training, running mean")
    _line(axis, curves.get("val_loss"), color=BLUE, label="validation", **POINTS)
    values = [value for name in ("loss", "val_loss") for _, value in curves.get(name, ()) if value > 0]
    axis.set(title="Loss per answer token")
    if values and max(values) > 10 * min(values):
        _logarithmic(axis)


def _rates(axis: Axes, curves: Curves, marks: Mapping[str, float]) -> None:
    names = [name for name in curves if name.startswith("lr_")]
    same = len({tuple(curves[name]) for name in names}) == 1
    for name, colour in zip(names[:1] if same else names, COLOURS, strict=False):
        label = "all parts" if same and len(names) > 1 else name.removeprefix("lr_")
        _line(axis, curves[name], color=colour, linewidth=2, label=label)
    axis.set(title="Learning rate", ylim=(0, None))
    axis.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))


def _measured(axis: Axes, curves: Curves, marks: Mapping[str, float]) -> None:
    names = _validation_figures(curves)
    for name, colour in zip(names, COLOURS, strict=False):
        _line(axis, curves[name], color=colour, label=name.removeprefix("val_").replace("_", " "), **POINTS)
    shares = all(0 <= value <= 1 for name in names for _, value in curves[name])
    for label, value in marks.items():
        shown = f"{value:.1%}" if shares else f"{value:g}"
        axis.axhline(value, color=ORANGE, linestyle="--", label=f"{label}: {shown}", zorder=1)
    axis.set(title="Measured at validation")
    if shares:
        axis.set_ylim(0, 1.04)
        axis.yaxis.set_major_formatter(PercentFormatter(1))


def _norm(axis: Axes, curves: Curves, marks: Mapping[str, float]) -> None:
    _line(axis, curves.get("grad_norm"), color="#f3b48a", linewidth=1)
    _mean_line(axis, curves.get("grad_norm"), color=ORANGE, linewidth=1.4)
    axis.set(title="Gradient norm, before clipping")
    if all(value > 0 for _, value in curves["grad_norm"]):
        _logarithmic(axis)


def _speed(axis: Axes, curves: Curves, marks: Mapping[str, float]) -> None:
    _line(axis, curves.get("tokens_per_second"), color="#9fd3b4", linewidth=1)
    _mean_line(axis, curves.get("tokens_per_second"), color=GREEN, linewidth=1.4)
    axis.set(title="Tokens per second", ylim=(0, None))
    axis.yaxis.set_major_formatter(EngFormatter(sep=" "))


def _validation_figures(curves: Curves) -> list[str]:
    return [name for name in curves if name.startswith("val_") and name != "val_loss"]


@dataclass(frozen=True)
class Panel:
    """One chart of the picture: which curves it shows, and the function that draws them."""

    wants: Callable[[str], bool]
    draw: Callable[[Axes, Curves, Mapping[str, float]], None]


PANELS = (
    Panel(lambda name: name in ("loss", "val_loss"), _losses),
    Panel(lambda name: name.startswith("val_") and name != "val_loss", _measured),
    Panel(lambda name: name.startswith("lr_"), _rates),
    Panel(lambda name: name == "grad_norm", _norm),
    Panel(lambda name: name == "tokens_per_second", _speed),
)


def _line(axis: Axes, curve: Curve | None, **style: Any) -> None:
    if curve:
        steps, values = zip(*curve, strict=True)
        axis.plot(steps, values, **style)


def _logarithmic(axis: Axes) -> None:
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.2, 0.6)))


def _mean_line(axis: Axes, curve: Curve | None, **style: Any) -> None:
    """Draw a running mean if the curve has many points."""
    if curve and len(curve) >= MANY:
        width = len(curve) // WINDOWS + 1
        sums = [0.0, *accumulate(value for _, value in curve)]
        ends = range(width, len(curve) + 1)
        axis.plot(
            [curve[end - 1 - width // 2][0] for end in ends],
            [(sums[end] - sums[end - width]) / width for end in ends],
            **style,
        )
