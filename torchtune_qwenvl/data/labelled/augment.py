"""Augmentation that depends on seed, epoch and number of the image alone.

Workers are not told the epoch, so the sampler hands out pairs (number, epoch). The random numbers of an image
are drawn from a seed made of both: a resumed run and any number of workers give the same pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as tv

from torchtune_qwenvl.data.labelled.dataset import LabelledImages
from torchtune_qwenvl.data.order.sampler import ResumableSampler
from torchtune_qwenvl.data.samples import Samples
from torchtune_qwenvl.transforms.errors import BadSample


class Draw(NamedTuple):
    """An image by its number, in an epoch."""

    number: int
    epoch: int


class EpochSampler(ResumableSampler):
    """A `ResumableSampler` whose batches hold a `Draw` per image."""

    def __iter__(self) -> Iterator[list[Draw]]:  # type: ignore[override]
        for batch in super().__iter__():
            yield [Draw(number, self.epoch) for number in batch]


class Augmented(Samples):
    """Images through a transform: `{"pixels": [c, h, w], "label", "number", "epoch"}` for each `Draw`.

    Args:
        images: with their labels.
        transform: uint8 [c, h, w] -> pixels [c, h, w], float or uint8.
        seed: of the random numbers that the transform draws.
        multiple: sides of the pixels are multiples of this, the side of a patch or of a visual token.
    """

    def __init__(
        self, images: LabelledImages, transform: Callable[[Tensor], Tensor], *, seed: int, multiple: int = 1
    ) -> None:
        self.images, self.transform, self.seed, self.multiple = images, transform, seed, multiple

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, draw: Draw) -> Mapping[str, Any]:
        """The augmented image.

        Raises:
            BadSample: a file that cannot be read, or pixels that the encoder cannot cut into patches.
        """
        number, epoch = draw
        image = self.images.image(number)
        with seeded(self.seed, epoch, number):
            pixels = self.transform(image)
        _check_pixels(pixels, self.multiple)
        return {"pixels": pixels, "label": self.images.labels[number], "number": number, "epoch": epoch}

    def where(self, draw: Draw) -> str:
        """Where an image comes from, for messages."""
        return self.images.where(draw.number)

    def example(self) -> Mapping[str, Any]:
        """The first image that can be read: the size and dtype that the model will get.

        Raises:
            ValueError: none of the first 100 can be read.
        """
        reasons = []
        for number in range(min(len(self), 100)):
            try:
                return self[Draw(number, 0)]
            except (ValueError, OSError) as error:
                reasons.append(str(error))
        raise ValueError(
            f"{self.images.name}: none of the first {len(reasons)} images can be read: {reasons[0]}"
        )


class ToFloat(nn.Module):
    """uint8 pixels to floats: from 0 .. 255 to 0 .. 1, then (x - mean) / std.

    Args:
        mean: per channel, or one for all.
        std: per channel, or one for all.
    """

    def __init__(self, mean: Sequence[float] = (0.5,), std: Sequence[float] = (0.5,)) -> None:
        super().__init__()
        self.mean, self.std = list(mean), list(std)

    def forward(self, pixels: Tensor) -> Tensor:
        """[c, h, w] uint8 -> [c, h, w] float32."""
        scaled = tv.to_dtype(pixels, torch.float32, scale=True)
        return tv.normalize(scaled, self.mean, self.std, inplace=True)


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """torch's random numbers on the CPU from a seed made of these; the state before comes back after."""
    state = torch.get_rng_state()
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    # Not torch.manual_seed, which sets the GPU's random numbers as well.
    torch.default_generator.manual_seed(int.from_bytes(digest, "little") >> 1)
    try:
        yield
    finally:
        torch.set_rng_state(state)


def _check_pixels(pixels: Any, multiple: int) -> None:
    if not isinstance(pixels, Tensor) or pixels.dim() != 3:
        shape = list(pixels.shape) if isinstance(pixels, Tensor) else type(pixels).__name__
        raise BadSample(f"the transforms should give a tensor [channels, height, width], got {shape}")
    height, width = pixels.shape[1:]
    if height % multiple or width % multiple:
        raise BadSample(
            f"{height} x {width} pixels after the transforms: expected multiples of {multiple}, the side of "
            "a patch (times the merge size)",
            fix="add torchvision.transforms.v2.Resize or CenterCrop with such a size",
        )
