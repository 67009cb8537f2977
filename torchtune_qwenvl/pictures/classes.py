"""Pictures of a classification: who is taken for whom, and images with what the model made of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.style import context

from torchtune_qwenvl.pictures.style import BLUE, GREEN, INK, ORANGE, STYLE, save
from torchtune_qwenvl.pictures.text import printable

MOST_NUMBERS = 25  # classes up to which every cell shows its number
MOST_NAMES = 60  # classes up to which every row and column has a name
COLUMNS = 6


@dataclass(frozen=True)
class Prediction:
    """An image [h, w, 3] uint8 (or [h, w]), the class it has, the class it was given, and how surely."""

    image: np.ndarray
    expected: str
    given: str
    probability: float


def draw_confusion(
    counts: Sequence[Sequence[int]], names: Sequence[str], path: Path, title: str = ""
) -> None:
    """Write a PNG: a row per class, shares of its images by the class that they were given.

    Args:
        counts: k rows of k numbers, images of class (row) that were given class (column).
        names: of the k classes.
        path: of the PNG.
        title: above it.
    """
    table = np.asarray(counts, dtype=float)
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    side = min(16.0, 3.2 + 0.42 * len(names))
    with context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(side + 0.6, side), layout="constrained")
        axis = figure.subplots()
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axis.set(xlabel="predicted", ylabel="actual", title=title)
        if len(names) <= MOST_NAMES:
            shown = [_short(name) for name in names]
            axis.set_xticks(range(len(names)), shown, rotation=90)
            axis.set_yticks(range(len(names)), shown)
        if len(names) <= MOST_NUMBERS:
            _write_numbers(axis, table, shares)
        save(figure, path)


def draw_predictions(
    first: Sequence[Prediction], mistakes: Sequence[Prediction], path: Path, title: str = ""
) -> None:
    """Write a PNG with the first images of a data set, and below them the mistakes.

    Args:
        first: from left to right, six in a row.
        mistakes: the same; may be empty.
        path: of the PNG.
        title: above it.
    """
    rows_of_first, rows_of_mistakes = (-(-len(part) // COLUMNS) for part in (first, mistakes))
    rows = rows_of_first + rows_of_mistakes
    if not rows:
        return
    with context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(10.5, 2.2 * rows + 0.5), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", weight="bold", color=INK)
        axes = figure.subplots(rows, COLUMNS, squeeze=False)
        for axis in axes.flat:
            axis.set_axis_off()
        for part, start in ((first, 0), (mistakes, rows_of_first)):
            for prediction, axis in zip(part, axes[start:].flat, strict=False):
                _draw(axis, prediction)
        save(figure, path)


def _draw(axis: Axes, prediction: Prediction) -> None:
    axis.imshow(prediction.image, cmap="gray", vmin=0, vmax=255)
    right = prediction.expected == prediction.given
    words = f"{_short(prediction.given)}  {prediction.probability:.0%}"
    words += "" if right else f"\nis {_short(prediction.expected)}"
    axis.set_title(words, fontsize=9, color=GREEN if right else ORANGE, loc="center", weight="normal")


def _write_numbers(axis: Axes, table: np.ndarray, shares: np.ndarray) -> None:
    for row, column in np.argwhere(table > 0):
        colour = "white" if shares[row, column] > 0.5 else BLUE
        axis.text(column, row, f"{table[row, column]:g}", ha="center", va="center", color=colour, fontsize=8)


def _short(name: str, length: int = 18) -> str:
    # matplotlib would read $...$ as mathematics.
    name = printable(" ".join(name.split())).replace("$", r"\$")
    return name if len(name) <= length else f"{name[: length - 1]}…"
