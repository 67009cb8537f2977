"""Report at the end of the demo: answers about held-out images, two pictures, and the accuracy."""

from pathlib import Path
from typing import Any

import torch

from torchtune_qwenvl.demo.answers import Answer, accuracy, ask
from torchtune_qwenvl.demo.pictures import draw_answers
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel
from torchtune_qwenvl.pictures.curves import draw_curves
from torchtune_qwenvl.training.watch.history import read_curves


def report_digits(
    model: VisionLanguageModel, transform: Any, output_dir: str | Path, *, data: str
) -> list[Answer]:
    """Write answers.png, mark the accuracy in curves.png, and print the paths and, last, the accuracy.

    Args:
        model: the trained model; all ranks must call this, rank 0 writes.
        transform: its transform.
        output_dir: the run's folder.
        data: .jsonl file of the held-out conversations.

    Returns:
        The answers.
    """
    answers = ask(model, transform, Path(data))
    if torch.distributed.is_initialized() and torch.distributed.get_rank() != 0:
        return answers
    out = Path(output_dir)
    draw_curves(read_curves(out), out / "curves.png", {"held out, at the end": accuracy(answers)})
    draw_answers(answers, out / "answers.png")
    print(f"model           {out / 'model'}", f"loss, accuracy  {out / 'curves.png'}", sep="\n")
    print(f"sample answers  {out / 'answers.png'}")
    print(f"held-out accuracy {accuracy(answers):.3f} ({len(answers)} images)", flush=True)
    return answers
