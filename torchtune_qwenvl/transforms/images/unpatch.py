"""Turn patches back into images, to show what the model sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor


def images_of(patches: Sequence[Tensor], grids: Tensor, transform: Any) -> list[Image.Image]:
    """The images of a sample, with the first frame of each video.

    Args:
        patches: [n, values per patch] of each image or video, see `patches_to_image`.
        grids: [m, 3], (frames, rows, columns) of each in patches.
        transform: the transform that made the sample.
    """
    pixels = [patches_to_image(p, g, transform) for p, g in zip(patches, grids.tolist(), strict=True)]
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pixels]


def patches_to_image(patches: Tensor, grid: Sequence[int], transform: Any) -> Tensor:
    """The first frame as an image: the inverse of the transform.

    Args:
        patches: [n, c·p·p] or [n, c·T·p·p] of one image or video, uint8 or normalised float.
        grid: (frames, rows, columns) in patches.
        transform: the transform that made them; gives patch size, merge size, mean and standard deviation.

    Returns:
        uint8 [c, height, width].
    """
    made = transform.image_transform
    c, p, m = len(made.image_mean), made.patch_size, made.merge_size
    _, h, w = grid
    blocks = patches[: h * w].view(h // m, w // m, m, m, c, -1, p, p)[:, :, :, :, :, 0]
    image = blocks.permute(4, 0, 2, 5, 1, 3, 6).reshape(c, h * p, w * p)
    if image.is_floating_point():
        mean, std = (torch.tensor(values)[:, None, None] for values in (made.image_mean, made.image_std))
        image = ((image.float() * std + mean) * 255).round().clamp(0, 255)
    return image.to(torch.uint8)
