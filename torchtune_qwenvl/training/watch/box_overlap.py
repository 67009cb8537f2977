"""How well generated boxes cover the expected ones; for `evaluate:` in a config."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from torchtune_qwenvl.arguments import takes_arguments_of
from torchtune_qwenvl.data.chat_dataset import vision_chat_dataset
from torchtune_qwenvl.data.samples import SkippedSample
from torchtune_qwenvl.data.streams.dataset import in_order
from torchtune_qwenvl.generation import generate
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel
from torchtune_qwenvl.training.watch.validation_answers import Answer, Question, answer_of, question_of
from torchtune_qwenvl.transforms.boxes.overlap import matched_ious

FOUND = 0.5  # the IoU from which a box counts as found


@takes_arguments_of(vision_chat_dataset)
def box_iou(
    model: VisionLanguageModel,
    transform: Any,
    *,
    source: Any,
    samples: int = 64,
    batch_size: int = 8,
    max_new_tokens: int = 256,
    **dataset: Any,
) -> dict[str, float]:
    """Ask about the images of a dataset, and compare the boxes of the answers with the expected ones.

    The question is the first of a sample whose first answer has boxes; others are passed over. Boxes are
    paired by their overlap, the best pair first, and by their labels where both have one. A point is no box.

    Args:
        model: the model; its mode (training or evaluation) is restored. Every rank must call this.
        transform: its transform.
        source: the records, with boxes as in training.
        samples: how many are asked at most, the first ones.
        batch_size: how many at a time.
        max_new_tokens: per answer.
        **dataset: arguments of `vision_chat_dataset`.

    Returns:
        `val_box_iou`: mean IoU over the expected boxes, 0 for those that have no partner · `val_box_recall`:
        share of them with an IoU of at least 0.5 · `val_box_precision`: number of these over the number of
        generated boxes; 0 if there is none.

    Raises:
        ValueError: no sample has an answer with boxes.
    """
    questions = list(islice(_with_boxes(model, transform, source, dataset), samples))
    if not questions:
        raise ValueError(f"box_iou: no sample of {source} has a first answer with boxes in one image")
    was_training = model.training
    model.eval()
    answers: list[Answer] = []
    for start in range(0, len(questions), batch_size):
        asked = questions[start : start + batch_size]
        rows = generate(
            model,
            [question.prompt for question in asked],
            pad_id=transform.pad_id,
            stop_tokens=transform.stop_tokens,
            max_new_tokens=max_new_tokens,
        )
        answers += [answer_of(*pair, transform) for pair in zip(asked, rows, strict=True)]
    model.train(was_training)
    return box_figures(answers)


def box_figures(answers: Sequence[Answer]) -> dict[str, float]:
    """The figures of `box_iou` for answers; at least one box must be expected."""
    ious = [iou for one in answers for iou in matched_ious(one.question.boxes, one.boxes)]
    found = sum(iou >= FOUND for iou in ious)
    generated = sum(not place.is_point for answer in answers for place in answer.boxes)
    return {
        "val_box_iou": sum(ious) / len(ious),
        "val_box_recall": found / len(ious),
        "val_box_precision": found / generated if generated else 0.0,
    }


def _with_boxes(
    model: VisionLanguageModel, transform: Any, source: Any, dataset: dict[str, Any]
) -> Iterator[Question]:
    visual = (model.image_token_id, model.video_token_id)
    records = vision_chat_dataset(transform, source=source, **dataset)
    policies = (dataset.get(name, "raise") for name in ("on_bad_sample", "on_too_long"))
    for sample in in_order(records, *policies):
        if not isinstance(sample, SkippedSample):
            question = question_of(sample, transform, visual)
            if any(not place.is_point for place in question.boxes):
                yield question
