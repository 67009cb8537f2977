"""How well an encoder classifies held-out images: loss, top-1, top-5, who is taken for whom.

k classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchtune_qwenvl.distributed import World, reshard

TOP = 5


@dataclass(frozen=True)
class Guess:
    """What the model made of an image.

    Attributes:
        number: of the image in its data set.
        label: number of its class.
        given: number of the class that got the highest probability.
        probability: that of `given`.
    """

    number: int
    label: int
    given: int
    probability: float

    @property
    def right(self) -> bool:
        """Whether the class is the image's."""
        return self.label == self.given


@dataclass(frozen=True)
class Classified:
    """Results over a data set.

    Attributes:
        loss: mean cross-entropy per image, without label smoothing.
        top1: share of the images whose class got the highest probability.
        top5: share of the images whose class is among the five highest; 1 with five classes or fewer.
        confusion: int64 [k, k], images of class (row) that were given class (column).
        guesses: of this rank.
    """

    loss: float
    top1: float
    top5: float
    confusion: Tensor
    guesses: Sequence[Guess] = field(repr=False)

    @property
    def figures(self) -> dict[str, float]:
        """What is logged."""
        return {"val_loss": self.loss, "val_top1": self.top1, "val_top5": self.top5}

    def per_class(self) -> list[float]:
        """Share of each class's images that were recognised; 0 for a class without images."""
        rows = self.confusion.double()
        return (rows.diag() / rows.sum(dim=1).clamp(min=1)).tolist()

    def save(self, path: Path, class_names: Sequence[str]) -> None:
        """Write `figures` and `per_class` as JSON."""
        found = {**self.figures, "per_class": dict(zip(class_names, self.per_class(), strict=True))}
        path.write_text(json.dumps(found, indent=2), encoding="utf-8")


@torch.no_grad()
def classify(
    model: nn.Module,
    batches: Iterable[dict[str, Any]],
    world: World,
    autocast: Callable[[], AbstractContextManager],
    n_classes: int,
) -> Classified:
    """Classify all images; every rank must bring the same number of batches.

    Args:
        model: (pixel_values, grid_thw) -> logits [b, k]; left in the mode in which it came.
        batches: of `ImageCollate`, on the device.
        world: whose ranks share the data.
        autocast: makes the context to compute in.
        n_classes: k.

    Raises:
        ValueError: no image at all.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=world.device)  # loss, in the top 5, images
    confusion = torch.zeros(n_classes * n_classes, dtype=torch.int64, device=world.device)
    guesses: list[Guess] = []
    for batch in batches:
        with autocast():
            logits = model(batch["pixel_values"], batch["grid_thw"]).float()
        here = batch["labels"] >= 0
        logits, labels = logits[here], batch["labels"][here]
        high = logits.topk(min(TOP, n_classes)).indices
        sums[0] += F.cross_entropy(logits, labels, reduction="sum")
        sums[1] += (high == labels[:, None]).any(dim=1).sum()
        sums[2] += len(labels)
        confusion += torch.bincount(labels * n_classes + high[:, 0], minlength=n_classes**2)
        numbers = [number for number in batch["numbers"] if number >= 0]
        guesses += _guesses(numbers, labels, high[:, 0], logits.softmax(dim=1).amax(dim=1))
    reshard(model)
    model.train(was_training)
    loss, in_top, images = world.sum(sums).tolist()
    if not images:
        raise ValueError("val_dataset: there is no image that can be read")
    square = world.sum(confusion).view(n_classes, n_classes).cpu()
    return Classified(loss / images, int(square.diag().sum()) / images, in_top / images, square, guesses)


def _guesses(numbers: Sequence[int], labels: Tensor, given: Tensor, probability: Tensor) -> list[Guess]:
    columns = zip(numbers, labels.tolist(), given.tolist(), probability.tolist(), strict=True)
    return [Guess(*row) for row in columns]
