"""The end of the demo: answers about images never trained on, two pictures, one line with the accuracy."""

from pathlib import Path
from typing import Any

import torch

from torchtune_qwenvl.demo.answers import Answer, accuracy, ask
from torchtune_qwenvl.demo.pictures import draw_answers, draw_curves
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel

Curve = list[tuple[int, float]]


def report_digits(
    model: VisionLanguageModel, transform: Any, output_dir: str | Path, *, data: str, log: str
) -> list[Answer]:
    """Write curves.png and answers.png to `output_dir`, print where everything is, and the accuracy last.

    Args:
        model: trained; all ranks call, rank 0 writes.
        transform: its transform.
        output_dir: of the run.
        data: .jsonl file of the held-out conversations.
        log: what torchtune's DiskLogger wrote in this run.

    Returns:
        The answers.
    """
    answers = ask(model, transform, Path(data))
    if torch.distributed.is_initialized() and torch.distributed.get_rank() != 0:
        return answers
    out = Path(output_dir)
    draw_curves(read_log(Path(log)), accuracy(answers), out / "curves.png")
    draw_answers(answers, out / "answers.png")
    print(f"model           {out / 'model'}", f"loss, accuracy  {out / 'curves.png'}", sep="\n")
    print(f"sample answers  {out / 'answers.png'}")
    print(f"held-out accuracy {accuracy(answers):.3f} ({len(answers)} images)", flush=True)
    return answers


def read_log(path: Path) -> dict[str, Curve]:
    """Name -> [(step, value)] from lines `Step 20 | loss:0.25 grad_norm:1.5`.

    DiskLogger appends: where a step is not above the last one, an earlier run's values from there on go.
    """
    curves: dict[str, Curve] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        head, _, figures = line.partition(" | ")
        step = int(head.removeprefix("Step "))
        for figure in figures.split():
            name, _, value = figure.partition(":")
            earlier = [point for point in curves.get(name, []) if point[0] < step]
            curves[name] = [*earlier, (step, float(value))]
    return curves
