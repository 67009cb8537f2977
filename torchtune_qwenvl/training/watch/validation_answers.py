"""Ask a few questions of the validation set at each validation, so that one can watch a run learn.

A question is a sample's tokens up to its first answer. It is exactly what the model sees in training, and any
kind of dataset can be asked.
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
from torchtune_qwenvl.modules.batch import placeholder_positions
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel
from torchtune_qwenvl.training.watch.sample_log import shortened
from torchtune_qwenvl.transforms.boxes.places import Place
from torchtune_qwenvl.transforms.boxes.reading import boxes_in, says_boxes
from torchtune_qwenvl.transforms.images.unpatch import images_of


@dataclass(frozen=True)
class Question:
    """A question of the validation set.

    Attributes:
        prompt: the sample up to its first answer, as the transform makes it.
        text: the last question as text.
        expected: the answer in the dataset.
        images: the images; a video is represented by its first frame.
        clips: how many of `images` are first frames of videos.
        boxes: expected boxes and points, in pixels of the image that all of them belong to.
        box_image: number of that image; None if there is none, or more than one.
    """

    prompt: dict[str, Any]
    text: str
    expected: str
    images: tuple[Image.Image, ...]
    clips: int = 0
    boxes: tuple[Place, ...] = ()
    box_image: int | None = None


@dataclass(frozen=True)
class Answer:
    """The answer that the model gave to a question.

    Attributes:
        question: what was asked.
        given: the answer.
        boxes: boxes and points in the answer, in pixels of the question's image.
    """

    question: Question
    given: str
    boxes: tuple[Place, ...] = ()

    @property
    def right(self) -> bool:
        """Whether the two answers are equal, apart from spaces around them."""
        return self.given.strip() == self.question.expected.strip()


class ValidationAnswers:
    """Asks the same few questions at each validation.

    Args:
        dataset: the validation set, of any kind; its first samples are the questions. None: no questions.
        transform: the transform that makes its samples.
        model: gives the ids of the placeholders of images and videos.
        count: number of questions.
        max_new_tokens: maximum length of an answer.
        on_bad_sample, on_too_long: "raise" or "skip", as in training.
    """

    def __init__(
        self,
        dataset: Dataset | None,
        transform: Any,
        model: VisionLanguageModel,
        count: int,
        max_new_tokens: int,
        on_bad_sample: str = "raise",
        on_too_long: str = "raise",
    ) -> None:
        self.transform, self.max_new_tokens = transform, max_new_tokens
        ids = (model.image_token_id, model.video_token_id)
        samples = in_order(dataset, on_bad_sample, on_too_long) if dataset is not None else iter(())
        good = (sample for sample in samples if not isinstance(sample, SkippedSample))
        self.questions = [question_of(sample, transform, ids) for sample in islice(good, count)]

    # Compiled layers would be compiled again for every length of the cache.
    @torch.compiler.set_stance("force_eager")
    def __call__(self, model: VisionLanguageModel) -> list[Answer]:
        """Greedy answers, all in one batch; with a sharded model, every rank must call this."""
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
        return [answer_of(q, row, self.transform) for q, row in zip(self.questions, rows, strict=True)]


def answer_of(question: Question, tokens: Sequence[int], transform: Any) -> Answer:
    """Generated tokens as an answer."""
    places: list[Place] = []
    if question.box_image is not None:
        text = transform.decode(tokens, skip_special_tokens=False)
        places = boxes_in(text, question.images[question.box_image], transform)
    return Answer(question, transform.decode(tokens), tuple(places))


def question_of(sample: Mapping[str, Any], transform: Any, visual_ids: Collection[int]) -> Question:
    """A sample cut before its first answer.

    Args:
        sample: `tokens`, `mask`, `input_pos` and `encoder_input`, see `VisionLanguageTransform`.
        transform: the transform that made it.
        visual_ids: ids of the placeholders of images and videos.
    """
    tokens, mask, vision = list(sample["tokens"]), list(sample["mask"]), sample["encoder_input"]["vision"]
    start = mask.index(False)
    end = next((i for i in range(start, len(mask)) if mask[i]), len(mask))
    merge = transform.image_transform.merge_size**2
    visual = sample.get("visual")
    if visual is None:
        visual = placeholder_positions(torch.tensor(tokens), visual_ids)
    asked_about = torch.as_tensor(visual)
    asked_about = asked_about[asked_about < start]
    seen, kept = len(asked_about), 0
    while kept < len(vision["images"]) and seen > 0:
        seen -= int(vision["grid_thw"][kept].prod()) // merge
        kept += 1
    images, grids = list(vision["images"][:kept]), vision["grid_thw"][:kept]
    pictures = tuple(images_of(images, grids, transform))
    marked = transform.decode(tokens[start:end], skip_special_tokens=False)
    box_image = _box_image(sample, marked, len(pictures))
    boxes = () if box_image is None else boxes_in(marked, pictures[box_image], transform)
    return Question(
        prompt={
            "tokens": tokens[:start],
            "mask": [True] * start,
            "input_pos": sample["input_pos"][:start],
            "visual": asked_about,
            "encoder_input": {"vision": {"images": images, "grid_thw": grids}},
        },
        text=_asked(tokens[:start], transform),
        expected=transform.decode(tokens[start:end]),
        images=pictures,
        clips=len(re.findall(transform.chat.video.pattern, shortened(tokens[:start], transform))),
        boxes=tuple(boxes),
        box_image=box_image,
    )


def _box_image(sample: Mapping[str, Any], expected: str, n_images: int) -> int | None:
    """The image that all boxes of an answer belong to: the record says it, or there is only one."""
    if "boxes" in sample:
        numbers = {place.image for place in sample["boxes"] if place.image < n_images}
        return numbers.pop() if len(numbers) == 1 else None
    return 0 if n_images == 1 and says_boxes(expected) else None


def _asked(tokens: Sequence[int], transform: Any) -> str:
    """The text of the last question, between the header of the user's turn and that of the answer."""
    user, assistant = (f"{transform.chat.roles[role]}\n" for role in ("user", "assistant"))
    asked = shortened(tokens, transform).rpartition(user)[2].rpartition(assistant)[0]
    asked = re.sub(transform.chat.video.pattern, "", asked)  # including its timestamps
    return re.sub("|".join(map(re.escape, transform.special_tokens)), "", asked).strip()
