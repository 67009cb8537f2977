"""The demo's two pictures, drawn with matplotlib (of the `demo` extra)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.style import context
from matplotlib.ticker import PercentFormatter
from PIL import Image

from torchtune_qwenvl.demo.answers import Answer

INK, GREY, FRAME = "#1f2933", "#7b8794", "#d5dae1"
PALE_BLUE, BLUE, GREEN, ORANGE, RED = "#a3bffa", "#2b50d8", "#15803d", "#ea580c", "#b91c1c"
STYLE = {
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": GREY,
    "axes.edgecolor": FRAME,
    "figure.dpi": 150,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#edf0f3",
    "xtick.color": GREY,
    "ytick.color": GREY,
    "ytick.minor.size": 0,
    "legend.frameon": False,
}
POINTS = {"linewidth": 2, "marker": "o", "markersize": 4.5}
COLUMNS, ROWS = 10, 4

Curve = Sequence[tuple[int, float]]


def draw_curves(curves: Mapping[str, Curve], held_out: float, path: Path) -> None:
    """Loss and accuracy over the steps.

    Args:
        curves: `loss`, `val_loss` and `val_accuracy` as [(step, value)]; one that is missing is left out.
        held_out: accuracy of the finished model, from 0 to 1.
        path: of the PNG.
    """
    with context(STYLE):
        figure = Figure(figsize=(10, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        _line(left, curves.get("loss"), color=PALE_BLUE, linewidth=1, label="training, each step")
        _line(left, curves.get("val_loss"), color=BLUE, label="validation", **POINTS)
        left.set(title="Loss per answer token", xlabel="step", yscale="log", xlim=(0, None))
        left.yaxis.set_major_formatter("{x:g}")
        left.legend(loc="upper right")
        _line(right, curves.get("val_accuracy"), color=GREEN, label="validation", **POINTS)
        right.axhline(
            held_out, color=ORANGE, linestyle="--", label=f"held out, at the end: {held_out:.1%}", zorder=1
        )
        right.set(title="Answers exactly right", xlabel="step", xlim=(0, None), ylim=(0, 1.04))
        right.yaxis.set_major_formatter(PercentFormatter(1))
        right.legend(loc="lower right")
        _save(figure, path)


def draw_answers(answers: Sequence[Answer], path: Path) -> None:
    """A page of images under the model's answers: the first right ones; in the last row, the wrong ones.

    Args:
        answers: about the held-out images, in their order.
        path: of the PNG.
    """
    right, wrong = ([answer for answer in answers if answer.right is kind] for kind in (True, False))
    rows = [right[COLUMNS * i : COLUMNS * (i + 1)] for i in range(ROWS - 1)] + [wrong[:COLUMNS]]
    with context(STYLE):
        figure = Figure(figsize=(10, 5.1), layout="constrained")
        for axes, row in zip(figure.subplots(ROWS, COLUMNS), rows, strict=True):
            for axis in axes:
                axis.set_axis_off()
            for axis, answer in zip(axes, row, strict=False):
                _draw_answer(axis, answer)
        note = f", {len(wrong)} answered wrongly (last row)" if wrong else ""
        figure.suptitle(
            f"Which digit is this?   {len(answers)} images never trained on{note}", fontweight="bold"
        )
        _save(figure, path)


def _draw_answer(axis: Axes, answer: Answer) -> None:
    with Image.open(answer.image) as image:
        axis.imshow(image, cmap="gray", vmin=0, vmax=255)
    axis.set_axis_on()
    axis.grid(False)
    axis.set(xticks=(), yticks=())
    axis.spines[:].set_visible(True)
    axis.set_title(
        _caption(answer.given),
        parse_math=False,
        fontsize=8,
        fontweight="normal",
        loc="center",
        pad=4,
        color=GREEN if answer.right else RED,
    )
    if not answer.right:
        axis.set_xlabel(f"right: {answer.expected}", fontsize=7)


def _caption(text: str) -> str:
    """An untrained model says anything: escaped, so that any font has it, and cut."""
    return ascii(text)[1:-1][:20] or "(no answer)"


def _line(axis: Axes, curve: Curve | None, **style: Any) -> None:
    if curve:
        steps, values = zip(*curve, strict=True)
        axis.plot(steps, values, **style)


def _save(figure: Figure, path: Path) -> None:
    """Without pyplot: no window system, no global state."""
    FigureCanvasAgg(figure).print_png(path)
