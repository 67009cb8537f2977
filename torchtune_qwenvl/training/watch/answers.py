"""A few questions of the validation set, asked at each validation: a run that is seen to learn.

A question is a sample up to its first answer, as tokens: exactly what training shows the model, whatever
kind of dataset it comes from.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset

from torchtune_qwenvl.data.samples import SkippedSample
from torchtune_qwenvl.data.streams.dataset import in_order
from torchtune_qwenvl.generation import generate
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel
from torchtune_qwenvl.training.watch.samples import patches_to_image, shortened


@dataclass(frozen=True)
class Question:
    """A prompt as the transform makes it, its question as text, the answer that belongs to it, its images.

    Of `clips` of them the first frame stands for the others.
    """

    prompt: dict[str, Any]
    text: str
    expected: str
    images: tuple[Image.Image, ...]
    clips: int = 0


@dataclass(frozen=True)
class Answer:
    """What the model said to a question."""

    question: Question
    given: str

    @property
    def right(self) -> bool:
        """Word for word; spaces around it do not count."""
        return self.given.strip() == self.question.expected.strip()


class ValidationAnswers:
    """Asks the same few questions at each validation.

    Args:
        dataset: the validation set, whatever kind it is; its first samples are asked about. None: none.
        transform: which makes its samples.
        model: to be asked; its placeholders of images and videos count.
        count: questions.
        max_new_tokens: most tokens of an answer.
        on_bad_sample: "raise" or "skip", as in training.
    """

    def __init__(
        self,
        dataset: Dataset | None,
        transform: Any,
        model: VisionLanguageModel,
        count: int,
        max_new_tokens: int,
        on_bad_sample: str = "raise",
    ) -> None:
        self.transform, self.max_new_tokens = transform, max_new_tokens
        ids = (model.image_token_id, model.video_token_id)
        samples = in_order(dataset, on_bad_sample) if dataset is not None else iter(())
        good = (sample for sample in samples if not isinstance(sample, SkippedSample))
        self.questions = [question_of(sample, transform, ids) for sample in islice(good, count)]

    # Compiled layers would be compiled anew for every length of the cache.
    @torch.compiler.set_stance("force_eager")
    def __call__(self, model: VisionLanguageModel) -> list[Answer]:
        """Greedy answers, all in one batch; every rank of a sharded model must call."""
        was_training = model.training
        model.eval()
        rows = generate(
            model,
            [question.prompt for question in self.questions],
            pad_id=self.transform.pad_id,
            stop_tokens=self.transform.stop_tokens,
            max_new_tokens=self.max_new_tokens,
        )
        model.train(was_training)
        return [Answer(q, self.transform.decode(row)) for q, row in zip(self.questions, rows, strict=True)]


def question_of(sample: Mapping[str, Any], transform: Any, visual_ids: Collection[int]) -> Question:
    """A sample cut before its first answer.

    Args:
        sample: `tokens`, `mask`, `input_pos` and `encoder_input`, see `VisionLanguageTransform`.
        transform: which made it.
        visual_ids: placeholders of images and videos.
    """
    tokens, mask, vision = list(sample["tokens"]), list(sample["mask"]), sample["encoder_input"]["vision"]
    start = mask.index(False)
    end = next((i for i in range(start, len(mask)) if mask[i]), len(mask))
    merge = transform.image_transform.merge_size**2
    seen, kept = sum(token in visual_ids for token in tokens[:start]), 0
    while kept < len(vision["images"]) and seen > 0:
        seen -= int(vision["grid_thw"][kept].prod()) // merge
        kept += 1
    images, grids = list(vision["images"][:kept]), vision["grid_thw"][:kept]
    pictures = [patches_to_image(p, g, transform) for p, g in zip(images, grids.tolist(), strict=True)]
    return Question(
        prompt={
            "tokens": tokens[:start],
            "mask": [True] * start,
            "input_pos": sample["input_pos"][:start],
            "encoder_input": {"vision": {"images": images, "grid_thw": grids}},
        },
        text=_asked(tokens[:start], transform),
        expected=transform.decode(tokens[start:end]),
        images=tuple(Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in pictures),
        clips=len(re.findall(transform.chat.video.pattern, shortened(tokens[:start], transform))),
    )


def _asked(tokens: Sequence[int], transform: Any) -> str:
    """The words of the last question: between the header of the user's turn and that of the answer."""
    user, assistant = (f"{transform.chat.roles[role]}\n" for role in ("user", "assistant"))
    asked = shortened(tokens, transform).rpartition(user)[2].rpartition(assistant)[0]
    asked = re.sub(transform.chat.video.pattern, "", asked)  # with the times that stand in it
    return re.sub("|".join(map(re.escape, transform.special_tokens)), "", asked).strip()
