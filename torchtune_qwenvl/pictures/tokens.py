"""Draw what an encoder's tokens say about a picture: norms, colours of the first components, similarity."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.style import context
from PIL import Image

from torchtune_qwenvl.pictures.style import BLUE, ORANGE, STYLE, save

Panel = tuple[str, np.ndarray]  # title, and a map [h, w] of values or [h, w, 3] of colours in 0 .. 1


def draw_tokens(
    path: Path,
    panels: Sequence[Panel],
    norms: np.ndarray,
    *,
    picture: Image.Image | None = None,
    mark: tuple[int, int] | None = None,
    title: str = "",
) -> None:
    """Write a PNG with the picture, a map per panel over it, and a histogram of the tokens' norms.

    Args:
        path: the PNG file to write.
        panels: maps in the grid of the tokens.
        norms: of all tokens.
        picture: drawn first, and pale below the maps of values.
        mark: (row, column) of a token that is marked in every map.
        title: above everything.
    """
    n = len(panels) + (picture is not None) + 1
    with context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(3.6 * n, 4.2), layout="constrained")
        axes = iter(np.atleast_1d(figure.subplots(1, n)))
        figure.suptitle(title)
        if picture is not None:
            _picture(next(axes), "picture", np.asarray(picture.convert("RGB")))
        for name, values in panels:
            axis = next(axes)
            _map(axis, name, values, picture)
            if mark is not None:
                rows, columns = values.shape[:2]
                axis.plot(
                    (mark[1] + 0.5) / columns, (mark[0] + 0.5) / rows, "o", mfc="none", mec=ORANGE, ms=10
                )
        axis = next(axes)
        axis.hist(norms, bins=32, color=BLUE)
        axis.set(title="norms of tokens", xlabel="norm", ylabel="tokens")
        save(figure, path)


def _picture(axis: Axes, title: str, pixels: np.ndarray) -> None:
    axis.imshow(pixels)
    axis.set(title=title)
    axis.set_axis_off()


def _map(axis: Axes, title: str, values: np.ndarray, picture: Image.Image | None) -> None:
    """Every map fills the unit square, so that it lies over the picture whatever its grid."""
    rows, columns = values.shape[:2]
    height, width = (picture.height, picture.width) if picture is not None else (rows, columns)
    extent, alpha = (0.0, 1.0, 1.0, 0.0), 1.0
    if picture is not None and values.ndim == 2:
        axis.imshow(np.asarray(picture.convert("L")), cmap="gray", extent=extent)
        alpha = 0.6
    axis.imshow(values, extent=extent, alpha=alpha, cmap="viridis", interpolation="nearest")
    axis.set(title=title, aspect=height / width)
    axis.set_axis_off()
