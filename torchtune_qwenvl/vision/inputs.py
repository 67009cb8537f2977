"""Images and clips -> patches and grids for an encoder: at their own size, at a fixed one, or with fixed
tokens.

    size=None, tokens=None    native: the nearest multiples of a patch within the pixel limits, no padding
    size=(448, 672)           every image stretched to this height and width
    tokens=256                the grid of 256 tokens nearest to the image's shape: 16 x 16, 8 x 32, …

c channels, h, w height and width in pixels, n patches, p patch side.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from torchtune_qwenvl.transforms.errors import BadSample
from torchtune_qwenvl.transforms.images.decode import open_image
from torchtune_qwenvl.transforms.images.image_transform import ImageTransform, PlannedImage
from torchtune_qwenvl.transforms.videos.video_transform import VideoTransform
from torchtune_qwenvl.vision.channels import PlannedChannels, plan_channels

Grid = tuple[int, int, int]


class VisionInputs:
    """How an encoder's images and clips are read.

    Args:
        images: the encoder's image transform; as bytes (uint8) its patches are an eighth as large.
        videos: its video transform; None refuses clips.
        size: (height, width) in pixels, multiples of a visual token's side; None: the image's own.
        tokens: number of visual tokens of every image, instead of `size`.
        channels: channels of the encoder. With 3 images are RGB, else see `plan_channels`.

    Raises:
        ValueError: `size` and `tokens` together, or a size that is no whole number of tokens.
    """

    def __init__(
        self,
        images: ImageTransform,
        videos: VideoTransform | None = None,
        *,
        size: tuple[int, int] | None = None,
        tokens: int | None = None,
        channels: int = 3,
    ) -> None:
        self.side = images.patch_size * images.merge_size
        if size is not None and tokens is not None:
            raise ValueError(f"give size or tokens, not both: got size={size}, tokens={tokens}")
        if tokens is not None and tokens < 1:
            raise ValueError(f"tokens: expected at least 1, got {tokens}")
        if size is not None and any(length < 1 or length % self.side for length in size):
            raise ValueError(
                f"size {tuple(size)}: height and width must be multiples of {self.side}, the side of a token"
            )
        self.images, self.videos = images, videos
        self.size, self.tokens, self.channels = size, tokens, channels

    def plan(self, image: Any) -> PlannedImage | PlannedChannels:
        """Read an image's header and decide its size.

        Raises:
            BadSample: a file that cannot be read, or something that is no image.
        """
        if isinstance(image, str) and not Path(image).suffix and not Path(image).exists():
            raise BadSample(
                f"no image file called {image!r}; if this is text: there is no text tower, the encoder takes "
                "images only"
            )
        if self.channels != 3:
            planned = plan_channels(image, self.channels, self.images)
            exact = self._exact_size(planned.source_height, planned.source_width)
            return planned if exact is None else planned.resized(*exact)
        if self.size is None and self.tokens is None:
            return self.images.plan(image)
        opened = open_image(image, max_image_pixels=self.images.max_image_pixels)
        exact = self._exact_size(opened.height, opened.width)
        assert exact is not None
        return PlannedImage(opened, *exact)

    def read(self, planned: PlannedImage | PlannedChannels) -> tuple[torch.Tensor, Grid]:
        """Decode, resize and cut: patches [n, values] and the grid (1, rows, columns)."""
        if isinstance(planned, PlannedChannels):
            return planned.patches(self.images)
        return self.images.patches(planned)

    def read_image(self, image: Any) -> tuple[torch.Tensor, Grid]:
        """`plan` and `read`."""
        return self.read(self.plan(image))

    def read_video(self, video: Any) -> tuple[torch.Tensor, Grid]:
        """Patches [n, values] and the grid (t, rows, columns) of a clip.

        Raises:
            ValueError: an encoder without videos; a BadSample for a clip that cannot be read.
        """
        if self.videos is None:
            raise ValueError("this encoder takes no videos: give their frames as images")
        rate = 1.0 if isinstance(video, list | tuple) else None  # of no matter without a text
        return self.videos.patches(self.videos.plan(video, source_fps=rate))

    def settings(self) -> dict[str, Any]:
        """Everything that changes the patches of an image, as plain values."""
        images = self.images
        return {
            "rule": f"{type(images).__module__}.{type(images).__qualname__}",
            **{"patch_size": images.patch_size, "merge_size": images.merge_size},
            **{"temporal_patch_size": images.temporal_patch_size},
            **{"min_pixels": images.min_pixels, "max_pixels": images.max_pixels},
            **{"image_mean": images.image_mean, "image_std": images.image_std},
            **{"size": self.size and list(self.size), "tokens": self.tokens, "channels": self.channels},
        }

    def _exact_size(self, height: int, width: int) -> tuple[int, int] | None:
        if self.tokens is None:
            return self.size
        rows, columns = token_grid(self.tokens, height, width)
        return rows * self.side, columns * self.side


def token_grid(tokens: int, height: int, width: int) -> tuple[int, int]:
    """(rows, columns) with exactly this many tokens, as near as can be to the image's shape.

    256 tokens of 480 x 640 pixels: 16 x 16; of 300 x 1000: 8 x 32.
    """
    shapes = [(rows, tokens // rows) for rows in range(1, tokens + 1) if tokens % rows == 0]
    return min(shapes, key=lambda shape: abs(math.log(shape[0] * width / (shape[1] * height))))
