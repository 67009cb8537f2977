"""Show generated and expected answers: in the terminal, as a picture, and in wandb.

1  (1 image) Which digit is this?
   expected  The digit is 7.
   generated The digit is 1.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from torchtune.training.metric_logging import WandBLogger

from torchtune_qwenvl.counted import counted
from torchtune_qwenvl.pictures.boxes import Mark, draw_boxes
from torchtune_qwenvl.pictures.cards import Card, draw_page
from torchtune_qwenvl.pictures.style import GREEN, GREY, ORANGE
from torchtune_qwenvl.pictures.text import Span, printable
from torchtune_qwenvl.training.watch.history import History
from torchtune_qwenvl.training.watch.sample_log import running_wandb
from torchtune_qwenvl.training.watch.validation_answers import Answer


def show_answers(answers: Sequence[Answer], step: int, output_dir: Path, logger: History) -> str:
    """Draw `output_dir/answers/step_N.png`, and send the answers to wandb if the run logs there.

    Args:
        answers: the answers of one validation.
        step: the run's step.
        output_dir: the run's folder.
        logger: the run's history, which wraps its metric logger.

    Returns:
        The answers as lines for the terminal.
    """
    draw_answers(answers, step, output_dir / "answers" / f"step_{step}.png")
    if isinstance(logger.logger, WandBLogger):
        log_answers(answers, step)
    return as_text(answers)


def as_text(answers: Sequence[Answer], width: int | None = None) -> str:
    """Question, expected and generated answer, each on one line of at most `width` characters."""
    width = width or shutil.get_terminal_size((100, 24)).columns
    rows = []
    for number, answer in enumerate(answers, start=1):
        asked = answer.question
        rows.append(f"{number:>3}  {_one_line(_images(answer) + asked.text, width - 5)}")
        for name, text in (("expected", asked.expected), ("generated", answer.given)):
            rows.append(f"     {name:<10}{_one_line(text, width - 15) or '(nothing)'}")
    return "\n".join(rows)


def draw_answers(answers: Sequence[Answer], step: int, path: Path) -> None:
    """Draw a page with images and texts; answers that are right word for word are green.

    Boxes are drawn into their image, expected ones green, generated ones orange.
    """
    right = sum(answer.right for answer in answers)
    title = [
        Span(f"Step {step}", bold=True),
        Span(f"    {len(answers)} questions of the validation set, {right} answered word for word", GREY),
    ]
    draw_page(title, [_card(answer) for answer in answers], path)


def log_answers(answers: Sequence[Answer], step: int) -> None:
    """Send the answers to the open wandb run, as a table."""
    wandb = running_wandb()
    table = wandb.Table(columns=["image", "question", "expected", "generated"])
    for answer in answers:
        asked = answer.question
        image = wandb.Image(asked.images[0]) if asked.images else None
        table.add_data(image, asked.text, asked.expected, answer.given)
    wandb.log({"answers": table, "global_step": step})


def _card(answer: Answer) -> Card:
    asked = answer.question
    images = list(asked.images)
    if asked.box_image is not None:
        marks = [Mark(place.values, GREEN, place.label) for place in asked.boxes]
        marks += [Mark(place.values, ORANGE, place.label) for place in answer.boxes]
        images[asked.box_image] = draw_boxes(images[asked.box_image], marks)
    given = Span(answer.given or "(nothing)", GREEN if answer.right else ORANGE)
    return Card(
        images,
        [
            *(Span("question\n", GREY), Span(f"{asked.text}\n\n", bold=True)),
            *(Span("expected\n", GREY), Span(f"{asked.expected}\n\n")),
            *(Span("generated\n", GREY), given),
        ],
    )


def _images(answer: Answer) -> str:
    clips = answer.question.clips
    counts = {"image": len(answer.question.images) - clips, "clip": clips}
    named = [counted(count, kind) for kind, count in counts.items() if count]
    return f"({', '.join(named)}) " if named else ""


def _one_line(text: str, width: int) -> str:
    line = printable(" ".join(text.split()))
    return line if len(line) <= width else line[: max(0, width - 1)] + "…"
