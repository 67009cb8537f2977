"""Curves show what was logged, and any text fits into its lines."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from torchtune_qwenvl.pictures.cards import WIDTH, Card, draw_page
from torchtune_qwenvl.pictures.curves import draw_curves
from torchtune_qwenvl.pictures.style import BLUE, ORANGE, RED
from torchtune_qwenvl.pictures.text import Span, height, measure, wrap

SIZE = 24


def colours(path: Path) -> set[tuple[int, ...]]:
    return set(map(tuple, np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)))


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def test_a_panel_for_each_kind_of_figure(tmp_path: Path) -> None:
    losses = {"loss": [(step, 9 / step) for step in range(1, 101)]}
    validated = {**losses, "val_loss": [(50, 1.0), (100, 0.1)], "val_accuracy": [(50, 0.5), (100, 0.9)]}
    rates = {f"lr_{part}": [(1, 1e-4), (100, 0.0)] for part in ("encoder", "decoder")}
    draw_curves(losses, tmp_path / "loss.png")
    draw_curves({**validated, **rates}, tmp_path / "all.png", {"at the end": 0.75})
    few, many = Image.open(tmp_path / "loss.png"), Image.open(tmp_path / "all.png")
    assert few.width == many.width and many.height > 1.8 * few.height
    assert rgb(BLUE) not in colours(tmp_path / "loss.png")  # no validation, no dark line
    assert {rgb(BLUE), rgb(ORANGE)} <= colours(tmp_path / "all.png")


def test_odd_figures_are_drawn(tmp_path: Path) -> None:
    draw_curves({"loss": [(7, float("nan")), (8, 0.0)], "grad_norm": [(7, 0.0)]}, tmp_path / "a.png")
    draw_curves({"tokens_per_second": [(1, 2.0)]}, tmp_path / "b.png")
    draw_curves({}, tmp_path / "c.png")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.png", "b.png"]


@pytest.mark.parametrize("text", ["one two three four five six", "x" * 90, "中文没有空格" * 9, "a\n\nb", ""])
def test_lines_are_no_wider_than_asked_and_nothing_is_lost(text: str) -> None:
    lines = wrap([Span(text)], 200, SIZE)
    for line in lines:
        assert not line or line[-1][0] + measure(line[-1][1], SIZE) <= 200 + SIZE  # a space may hang over
    said = "".join(span.text for line in lines for _, span in line)
    assert said.replace(" ", "") == text.replace(" ", "").replace("\n", "")
    assert len(lines) > 1 or not text


def test_long_text_is_cut_with_an_ellipsis() -> None:
    lines = wrap([Span("word " * 100, bold=True)], 300, SIZE, max_lines=3)
    assert len(lines) == 3 and lines[-1][-1][1].text == " …"
    assert height(lines, SIZE) == pytest.approx(3 * 1.45 * SIZE)


def test_a_page_takes_any_text_and_any_number_of_images(tmp_path: Path) -> None:
    photo = Image.effect_noise((80, 40), 50)
    nonsense = "".join(map(chr, range(300))) + "\u2028\u0001\U0001f600"
    cards = [Card([photo] * n, [Span("a\n"), Span(nonsense, RED, back=ORANGE)]) for n in (0, 1, 3, 9)]
    draw_page([Span("title")], cards, tmp_path / "deep/page.png")
    assert Image.open(tmp_path / "deep/page.png").width == WIDTH
    assert {rgb(RED), rgb(ORANGE)} <= colours(tmp_path / "deep/page.png")
