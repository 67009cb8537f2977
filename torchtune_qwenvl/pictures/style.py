"""The style of all pictures: colours, matplotlib's settings, saving a figure."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

INK, GREY, FRAME, PAPER = "#1f2933", "#7b8794", "#d5dae1", "#ffffff"
PALE_BLUE, BLUE, GREEN, ORANGE, RED = "#a3bffa", "#2b50d8", "#15803d", "#ea580c", "#b91c1c"
PALE_GREEN, MIST = "#d7f5e0", "#f2f4f7"
STYLE = {
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": GREY,
    "axes.edgecolor": FRAME,
    "figure.dpi": 150,
    "figure.constrained_layout.h_pad": 0.12,
    "figure.constrained_layout.w_pad": 0.08,
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


def save(figure: Figure, path: Path) -> None:
    """Write a PNG without pyplot, which would need a window system and keep global state."""
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(path)
