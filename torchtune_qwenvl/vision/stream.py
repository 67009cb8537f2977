"""Many images through a pipeline: workers decode, batches hold a number of patches, order and memory stay.

paths ─> workers: patches and grids ─> batches of at most `batch_tokens` patches ─> encoder ─> Features
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset
from torchtune.utils import get_logger

from torchtune_qwenvl.transforms.errors import BadSample
from torchtune_qwenvl.vision.batches import by_tokens
from torchtune_qwenvl.vision.features import Features, Grid
from torchtune_qwenvl.vision.inputs import VisionInputs

log = get_logger("INFO")
OnBad = Literal["raise", "skip"]


class FailedImage(NamedTuple):
    """An image that was left out, and why."""

    path: str
    reason: str


class _ReadImage(NamedTuple):
    path: str
    patches: torch.Tensor
    grid: Grid


class _Images(Dataset):
    """Reads the image at a place of the list; a bad one comes back as a `FailedImage`."""

    def __init__(self, inputs: VisionInputs, images: Sequence[Any]) -> None:
        self.inputs, self.images = inputs, images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> _ReadImage | FailedImage:
        image = self.images[index]
        name = (
            str(image)
            if isinstance(image, (str, bytes)) or hasattr(image, "__fspath__")
            else f"image {index}"
        )
        try:
            return _ReadImage(name, *self.inputs.read_image(image))
        except BadSample as error:
            return FailedImage(name, str(error))


class Stream:
    """Iterates over `Features`, one per batch, with the images' `paths`.

    Args:
        inputs: reads an image.
        encode: patches and grids of a batch -> features.
        images: the images.
        batch_tokens: most patches per batch.
        workers: processes that decode.
        on_bad: "raise" or "skip".

    Attributes:
        failed: images left out so far, with the reason.

    Raises:
        ValueError: an unknown `on_bad`, or no images; while iterating, a bad image under "raise".
    """

    def __init__(
        self,
        inputs: VisionInputs,
        encode: Callable[[list[tuple[torch.Tensor, Grid]]], Features],
        images: Sequence[Any],
        batch_tokens: int,
        workers: int,
        on_bad: OnBad,
    ) -> None:
        if on_bad not in ("raise", "skip"):
            raise ValueError(f'on_bad: expected "raise" or "skip", got {on_bad!r}')
        if not images:
            raise ValueError("expected at least one image, got none")
        self.inputs, self.encode, self.images = inputs, encode, images
        self.batch_tokens, self.workers, self.on_bad = batch_tokens, workers, on_bad
        self.failed: list[FailedImage] = []

    def __iter__(self) -> Iterator[Features]:
        self.failed.clear()
        for batch in by_tokens(self._read(), self.batch_tokens, lambda image: len(image.patches)):
            found = self.encode([(image.patches, image.grid) for image in batch])
            yield found.with_paths([image.path for image in batch])

    def _read(self) -> Iterator[_ReadImage]:
        loader = DataLoader(
            _Images(self.inputs, self.images),
            batch_size=None,
            num_workers=min(self.workers, len(self.images)),
            collate_fn=_unchanged,
            pin_memory=torch.cuda.is_available(),
        )
        for image in loader:
            if isinstance(image, _ReadImage):
                yield image
                continue
            if self.on_bad == "raise":
                raise ValueError(f"{image.reason}. Set on_bad='skip' to leave bad images out")
            log.warning(f"left out: {image.reason}")
            self.failed.append(image)


def _unchanged(image: Any) -> Any:
    return image
