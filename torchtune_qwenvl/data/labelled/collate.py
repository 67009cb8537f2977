"""Augmented images to a batch: mixed with each other, cut into patches, with their targets.

b images, n patches of all of them, c channels, p patch side, k classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from torchtune_qwenvl.data.labelled.augment import seeded
from torchtune_qwenvl.transforms.images.patches import cut_patches

IGNORED = -100  # label of an image that fills a batch without samples
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class ImageCollate:
    """Samples of `Augmented` -> the arguments of an encoder, and what it should answer.

    Args:
        patch_size: p.
        merge_size: patches per side of a visual token; it decides the order of the patches.
        mixes: functions of (pixels [b, c, h, w], labels [b]) that return both, labels as [b, k]:
            torchvision's MixUp and CutMix. Each batch takes one of them.
        mix_share: of the batches that are mixed.
        seed: of the choice and of the mixing.
    """

    def __init__(
        self,
        *,
        patch_size: int,
        merge_size: int = 1,
        mixes: Sequence[Mix] = (),
        mix_share: float = 1.0,
        seed: int = 0,
    ) -> None:
        if not 0 <= mix_share <= 1:
            raise ValueError(f"mix_share: expected a number from 0 to 1, got {mix_share}")
        self.patch_size, self.merge_size = patch_size, merge_size
        self.mixes, self.mix_share, self.seed = list(mixes), mix_share, seed

    def __call__(
        self, samples: Sequence[Mapping[str, Any]], padding_idx: int = 0, ignore_idx: int = IGNORED
    ) -> dict[str, Any]:
        """A batch.

        Args:
            samples: of `Augmented`; a filler without "label" counts for nothing.
            padding_idx: unused, for the loader.
            ignore_idx: label of a filler.

        Returns:
            `pixel_values` [n, c * p * p], `grid_thw` a list on the host, `labels` int64 [b], `targets` the
            same, or float [b, k] of a mixed batch, and `numbers` of the images.
        """
        images = [sample["pixels"] for sample in samples]
        labels = torch.tensor([sample.get("label", ignore_idx) for sample in samples])
        targets = labels
        if self.mixes and "label" in samples[0]:
            images, targets = self._mixed(samples, images, labels)
        p, m = self.patch_size, self.merge_size
        return {
            "pixel_values": torch.cat([cut_patches(image, p, m).flatten(1) for image in images]),
            "grid_thw": [[1, image.shape[1] // p, image.shape[2] // p] for image in images],
            "labels": labels,
            "targets": targets,
            "numbers": [sample.get("number", -1) for sample in samples],
        }

    def _mixed(
        self, samples: Sequence[Mapping[str, Any]], images: list[Tensor], labels: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        if len({image.shape for image in images}) > 1:
            raise ValueError(
                f"mixing needs images of one size, got {sorted({tuple(image.shape) for image in images})}: "
                "add a Resize or a crop to the transforms"
            )
        with seeded(self.seed, samples[0]["epoch"], *(sample["number"] for sample in samples)):
            if float(torch.rand(())) >= self.mix_share:
                return images, labels
            mix = self.mixes[int(torch.randint(len(self.mixes), ()))]
            pixels, targets = mix(torch.stack(images), labels)
        return list(pixels), targets
