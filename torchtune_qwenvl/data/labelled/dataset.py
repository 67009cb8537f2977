"""Images with one label each, whatever they are stored in.

c channels, h, w height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from torchtune_qwenvl.arguments import nearest
from torchtune_qwenvl.transforms.errors import BadSample
from torchtune_qwenvl.transforms.images.decode import decode_image

CHANNELS = (1, 3)


class LabelledImages(Dataset):
    """Images, the number of each image's class, and the names of the classes.

    Args:
        sources: `sources[i]` is an image as `decode_image` takes it: a path, bytes, a PIL image, an array.
        labels: number of the class of each image, from 0.
        class_names: in the order of these numbers.
        name: of the data set, for messages.
        channels: 3 for RGB, 1 for grey.
        places: a name for each image in messages, such as file and line; None counts the images.

    Raises:
        ValueError: no image, a label without a class name, another number of channels.
    """

    def __init__(
        self,
        sources: Sequence[Any] | np.ndarray,
        labels: Iterable[int],
        class_names: Sequence[str],
        *,
        name: str,
        channels: int = 3,
        places: Sequence[str] | None = None,
    ) -> None:
        self.sources, self.name, self.places = sources, name, places
        self.labels = [int(label) for label in labels]
        self.class_names = tuple(str(one) for one in class_names)
        self.channels = channels
        if channels not in CHANNELS:
            raise ValueError(f"{name}: channels is 1 (grey) or 3 (RGB), got {channels}")
        if not self.labels or len(self.labels) != len(sources):
            raise ValueError(
                f"{name}: expected one label per image and at least one image, got {len(sources)} images and "
                f"{len(self.labels)} labels"
            )
        if min(self.labels) < 0 or max(self.labels) >= len(self.class_names):
            raise ValueError(
                f"{name}: expected labels from 0 to {len(self.class_names) - 1}, got "
                f"{min(self.labels)} to {max(self.labels)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.image(index), "label": self.labels[index]}

    def image(self, index: int) -> Tensor:
        """uint8 [c, h, w].

        Raises:
            BadSample: the file is missing or damaged.
        """
        pixels = decode_image(self.sources[index])
        return pixels if self.channels == 3 else grey(pixels)

    def where(self, index: int) -> str:
        """Where an image comes from, for messages."""
        return self.places[index] if self.places else f"{self.name}, image {index} (from 0)"

    def select(self, indexes: Sequence[int], name: str) -> LabelledImages:
        """These images as a data set of its own, with the same classes."""
        return LabelledImages(
            Selected(self.sources, indexes),
            [self.labels[i] for i in indexes],
            self.class_names,
            name=name,
            channels=self.channels,
            places=Selected(_Places(self), indexes),
        )

    def with_classes_of(self, other: LabelledImages) -> LabelledImages:
        """The same images with the class numbers of `other`, which the model was built for.

        Raises:
            ValueError: a class that `other` does not have.
        """
        if self.class_names == other.class_names:
            return self
        numbers = {name: number for number, name in enumerate(other.class_names)}
        used = {label: self.class_names[label] for label in self.labels}
        for name in used.values():
            if name not in numbers:
                hint = nearest(name, numbers)
                raise ValueError(f"{self.name}: class '{name}' is not a class of {other.name}.{hint}")
        labels = [numbers[used[label]] for label in self.labels]
        return LabelledImages(
            self.sources,
            labels,
            other.class_names,
            name=self.name,
            channels=self.channels,
            places=self.places,
        )


def check_labelled(key: str, images: Any) -> None:
    """Raise a ValueError for what a config calls a data set and is none; `key` is the config's."""
    if not isinstance(images, LabelledImages):
        raise ValueError(
            f"{key}: expected labelled images, got a {type(images).__name__}. Name a function of "
            "torchtune_qwenvl.data.labelled, or one that returns its LabelledImages."
        )


class Selected(Sequence[Any]):
    """Some entries of a sequence, by their numbers, without copying them."""

    def __init__(self, entries: Sequence[Any] | np.ndarray, indexes: Sequence[int]) -> None:
        self.entries, self.indexes = entries, [int(i) for i in indexes]

    def __len__(self) -> int:
        return len(self.indexes)

    def __getitem__(self, index: Any) -> Any:
        return self.entries[self.indexes[index]]


class _Places(Sequence[str]):
    """`where` of each image of a data set."""

    def __init__(self, images: LabelledImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Any) -> Any:
        return self.images.where(index)


def grey(pixels: Tensor) -> Tensor:
    """uint8 RGB [3, h, w] to [1, h, w] as Pillow does it (ITU-R 601-2); grey pixels keep their value."""
    r, g, b = pixels.to(torch.int32)
    return ((r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16).to(torch.uint8)[None]


def number_classes(
    names: Sequence[Any], class_names: Sequence[str] | None, places: Sequence[str]
) -> tuple[list[int], list[str]]:
    """Labels as they are written -> their numbers and the names of the classes.

    Args:
        names: label of each image, text or number.
        class_names: the classes in their order; None sorts what occurs, numbers by value.
        places: where each label is written, for messages.

    Raises:
        BadSample: a label that is not in `class_names`.
    """
    texts = [str(name).strip() for name in names]
    if class_names is None:
        found = set(texts)
        numeric = all(text.lstrip("-").isdigit() for text in found)
        class_names = sorted(found, key=int) if numeric else sorted(found)
    numbers = {str(name): number for number, name in enumerate(class_names)}
    for text, place in zip(texts, places, strict=True):
        if text not in numbers:
            raise BadSample(f"class '{text}' is not in class_names.{nearest(text, numbers)}", where=place)
    return [numbers[text] for text in texts], list(numbers)
