"""Images of other than three channels: RGB with depth, grey, or any stack of measured planes.

Alpha is not depth: a picture with an alpha channel is refused where four channels are wanted. Values are
fractions of their range: uint8 by 255, uint16 by 65535, floats as they are, from 0 to 1.

c channels, h, w height and width in pixels, n patches, p patch side, T frames per patch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from torchtune_qwenvl.transforms.errors import BadSample
from torchtune_qwenvl.transforms.images.decode import MAX_IMAGE_PIXELS, decode_image
from torchtune_qwenvl.transforms.images.formats import check_cost, opened_picture
from torchtune_qwenvl.transforms.images.image_transform import ImageTransform
from torchtune_qwenvl.transforms.images.patches import cut_patches

_RANGE = {torch.uint8: 255.0, torch.uint16: 65535.0}


@dataclass(frozen=True)
class PlannedChannels:
    """Planes [c, h, w] in 0 .. 1, and the size that they will be resized to."""

    planes: torch.Tensor
    height: int
    width: int

    @property
    def source_height(self) -> int:
        return self.planes.shape[1]

    @property
    def source_width(self) -> int:
        return self.planes.shape[2]

    def resized(self, height: int, width: int) -> PlannedChannels:
        """The same, to be resized to another size."""
        return replace(self, height=height, width=width)

    def patches(self, images: ImageTransform) -> tuple[torch.Tensor, tuple[int, int, int]]:
        """Normalised float32 patches [n, c·T·p·p] and the grid (1, rows, columns)."""
        size = [self.height, self.width]
        planes = tv.resize(self.planes, size, interpolation=InterpolationMode.BICUBIC, antialias=True)
        raw = cut_patches(planes.clamp(0, 1), images.patch_size, images.merge_size)
        mean, std = (torch.tensor(values)[:, None] for values in (images.image_mean, images.image_std))
        frames = ((raw - mean) / std)[:, :, None].expand(-1, -1, images.temporal_patch_size, -1)
        return frames.flatten(1), (1, self.height // images.patch_size, self.width // images.patch_size)


def plan_channels(source: Any, channels: int, images: ImageTransform) -> PlannedChannels:
    """An image of c channels, with the size that `images` gives it.

    Args:
        source: an array [h, w, c] or a tensor [c, h, w]; `{"image": any RGB image, "depth": plane}` with c =
            4, where a plane is an array [h, w], a tensor, or the path of a picture with one channel; with c =
            1 a plane.
        channels: c.
        images: the rule for sizes.

    Raises:
        BadSample: another number of channels, pictures with alpha, values outside of their range.
    """
    planes = _planes(source, channels)
    if len(planes) != channels:
        raise BadSample(
            f"expected an image of {channels} channels, got {len(planes)}",
            fix="give an array [h, w, channels], or {'image': …, 'depth': …} for RGB and depth",
        )
    height, width = planes.shape[1:]
    height, width = images.resize_to(height, width, images.min_pixels, images.max_pixels)
    return PlannedChannels(planes, height, width)


def _planes(source: Any, channels: int) -> torch.Tensor:
    if isinstance(source, Mapping):
        if set(source) != {"image", "depth"}:
            raise BadSample(f"expected the keys 'image' and 'depth', got {sorted(map(str, source))}")
        rgb, depth = decode_image(source["image"]).float() / 255, _plane(source["depth"])
        if rgb.shape[1:] != depth.shape[1:]:
            raise BadSample(
                f"the image is {list(rgb.shape[1:])}, its depth {list(depth.shape[1:])}: expected one size"
            )
        return torch.cat([rgb, depth])
    if isinstance(source, np.ndarray | torch.Tensor):
        return _fractions(source)
    if channels == 1:
        return _plane(source)
    raise BadSample(
        f"a picture cannot be an image of {channels} channels, and alpha is no depth",
        fix="give an array [h, w, channels], or {'image': …, 'depth': …}",
    )


def _plane(source: Any) -> torch.Tensor:
    """One plane [1, h, w] of an array or of a picture with a single channel."""
    if not isinstance(source, np.ndarray | torch.Tensor):
        source = _single_channel(source)
    planes = _fractions(source)
    if len(planes) != 1:
        raise BadSample(f"expected one plane, got {len(planes)}")
    return planes


def _single_channel(source: Any) -> np.ndarray:
    try:
        with opened_picture(source) as picture:
            check_cost(picture, MAX_IMAGE_PIXELS, "the limit of pixels")
            if len(picture.getbands()) != 1 or picture.mode == "P":
                raise BadSample(f"{source}: expected a picture with one channel, got mode {picture.mode}")
            values = np.array(picture)
    except (OSError, AttributeError) as error:
        raise BadSample(f"{source}: cannot be opened as a picture: {error}") from error
    return values.astype(np.uint16) if values.dtype == np.int32 and values.max() <= 65535 else values


def _fractions(source: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Array [h, w] or [h, w, c], tensor [h, w] or [c, h, w] -> float32 [c, h, w] in 0 .. 1."""
    if isinstance(source, np.ndarray):
        values = torch.from_numpy(np.ascontiguousarray(source))
        values = values.permute(2, 0, 1) if values.ndim == 3 else values
    else:
        values = source.cpu()
    values = values[None] if values.ndim == 2 else values
    if values.ndim != 3 or 0 in values.shape:
        raise BadSample(f"expected [h, w], [h, w, c] or a tensor [c, h, w], got {list(source.shape)}")
    if values.dtype in _RANGE:
        return values.float() / _RANGE[values.dtype]
    if not values.is_floating_point() or values.isnan().any() or values.min() < 0 or values.max() > 1:
        raise BadSample(
            "expected uint8, uint16, or floats from 0 to 1, "
            f"got {source.dtype} from {values.min()} to {values.max()}"
        )
    return values.float()
