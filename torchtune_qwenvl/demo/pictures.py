"""Draw the demo's page of answers. (Its curves are drawn like those of every run.)"""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.style import context
from PIL import Image

from torchtune_qwenvl.demo.answers import Answer
from torchtune_qwenvl.pictures.style import GREEN, RED, STYLE, save

COLUMNS, ROWS = 10, 4


def draw_answers(answers: Sequence[Answer], path: Path) -> None:
    """Draw a page of images with the model's answers: right ones first, wrong ones in the last row.

    Args:
        answers: the answers about the held-out images.
        path: the PNG file to write.
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
        save(figure, path)


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
        axis.set_xlabel(
            f"right:\n{answer.expected}", fontsize=7
        )  # two lines, as one would be wider than the image


def _caption(text: str) -> str:
    """Escape and shorten an answer: an untrained model may output characters that no font has."""
    return ascii(text)[1:-1][:20] or "(no answer)"
