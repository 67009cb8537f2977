"""Turn images into patches: smart resize, bicubic, normalise, cut.

Bit-equal to Qwen2VLImageProcessor of transformers (torchvision backend), and faster: the resize works on the
decoder's channels-last strides, and pixels are put into patch order while they are bytes.

Axes: n patches, c channels, T frames per patch, p patch side, m merge side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torchtune.modules.transforms import Transform
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from torchtune_qwenvl.transforms.errors import BadSample
from torchtune_qwenvl.transforms.images.decode import MAX_IMAGE_PIXELS, ImageSource, OpenedImage, open_image
from torchtune_qwenvl.transforms.images.patches import Normalise, cut_patches, pixel_dtype
from torchtune_qwenvl.transforms.images.resize import smart_resize, wanted_size

IMAGE_OPTIONS = ("min_pixels", "max_pixels", "resized_height", "resized_width")


@dataclass(frozen=True)
class PlannedImage:
    """An image whose header has been read, and the size to which it will be resized."""

    opened: OpenedImage
    height: int
    width: int


class ImageTransform(Transform):
    """Add `pixel_values` and `image_grid_thw` to `{"image": image}`.

    `pixel_values`: with a float `dtype`, normalised patches [n, c·T·p·p] whose T frames are copies; with
    uint8, raw patches [n, c·p·p], normalised later on the device. `image_grid_thw`: int64 [1, 3], the grid
    (1, rows, columns) of patches. Patches are ordered in blocks of m x m, which merge into one token each.

    Args:
        patch_size, temporal_patch_size, merge_size: p, T, m.
        min_pixels, max_pixels: limits of the resized area.
        image_mean, image_std: per channel, for pixels in [0, 1].
        dtype: dtype of `pixel_values`, a torch dtype or its name.
        max_image_pixels: images with more pixels are refused by their header.
    """

    def __init__(
        self,
        *,
        patch_size: int,
        temporal_patch_size: int = 2,
        merge_size: int = 2,
        min_pixels: int,
        max_pixels: int,
        image_mean: Sequence[float],
        image_std: Sequence[float],
        dtype: torch.dtype | str = torch.float32,
        max_image_pixels: int = MAX_IMAGE_PIXELS,
    ) -> None:
        if not 0 < min_pixels <= max_pixels:
            raise ValueError(f"expected 0 < min_pixels <= max_pixels, got {min_pixels} and {max_pixels}")
        self.patch_size, self.temporal_patch_size, self.merge_size = (
            patch_size,
            temporal_patch_size,
            merge_size,
        )
        self.min_pixels, self.max_pixels = min_pixels, max_pixels
        self.image_mean, self.image_std = list(image_mean), list(image_std)
        self.dtype = pixel_dtype(dtype)
        self.normalise = Normalise(image_mean, image_std)
        self.max_image_pixels = max_image_pixels

    def __call__(self, sample: Mapping[str, Any], inference: bool = False) -> dict[str, Any]:
        """See the class; `sample` may have the same options as a message's image part."""
        options = {name: sample[name] for name in IMAGE_OPTIONS if name in sample}
        patches, grid = self.patches(self.plan(sample["image"], **options))
        return {**sample, "pixel_values": patches, "image_grid_thw": torch.tensor([grid])}

    def plan(
        self,
        source: ImageSource,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        resized_height: int | None = None,
        resized_width: int | None = None,
        where: str | None = None,
    ) -> PlannedImage:
        """Read the header and decide the size.

        Args:
            source: see `open_image`.
            min_pixels, max_pixels: limits for this image instead of the transform's.
            resized_height, resized_width: the wanted size; it is still rounded and limited.
            where: location for errors, put before the path.

        Raises:
            BadSample: see `open_image`; also an aspect ratio over 200 and invalid options.
        """
        opened = open_image(source, max_image_pixels=self.max_image_pixels, where=where)
        try:
            low, high = _limits(_or(min_pixels, self.min_pixels), _or(max_pixels, self.max_pixels))
            height, width = wanted_size(opened, resized_height, resized_width)
            return PlannedImage(opened, *self.resize_to(height, width, low, high))
        except BadSample as error:
            raise error.at(opened.where) from None

    def resize_to(self, height: int, width: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
        """(height, width) to which an image of this size is resized; families may override this."""
        factor = self.patch_size * self.merge_size
        return smart_resize(height, width, factor=factor, min_pixels=min_pixels, max_pixels=max_pixels)

    def grid(self, image: PlannedImage) -> tuple[int, int, int]:
        """(1, rows, columns) in patches."""
        return 1, image.height // self.patch_size, image.width // self.patch_size

    def merged_grid(self, image: PlannedImage) -> tuple[int, int]:
        """(rows, columns) in merged patches, which become one token each."""
        side = self.patch_size * self.merge_size
        return image.height // side, image.width // side

    def patches(self, image: PlannedImage) -> tuple[torch.Tensor, tuple[int, int, int]]:
        """Decode, resize and cut; returns the patches (see the class) and their grid."""
        pixels = image.opened.decode()
        resized = tv.resize(
            pixels, [image.height, image.width], interpolation=InterpolationMode.BICUBIC, antialias=True
        )
        raw = cut_patches(resized, self.patch_size, self.merge_size)
        if self.dtype == torch.uint8:
            return raw.flatten(1), self.grid(image)
        frames = self.temporal_patch_size
        patches = torch.empty(len(raw), raw.shape[1], frames, raw.shape[2], dtype=self.dtype)
        self.normalise(raw, patches, slice(0, frames))
        return patches.flatten(1), self.grid(image)


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


def _limits(low: int, high: int) -> tuple[int, int]:
    if any(not isinstance(limit, int) or limit <= 0 for limit in (low, high)):
        raise BadSample(
            f"expected min_pixels and max_pixels to be positive integers, got {low!r} and {high!r}"
        )
    if low > high:
        raise BadSample(f"min_pixels {low} is more than max_pixels {high}", fix="set both for this image")
    return low, high
