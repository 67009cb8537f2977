"""GLM-4.1V's processor without a text: images and clips to patches, and shortcuts from images to tokens.

n patches of all images together, c channels, p patch side, T frames per patch, w width of a visual token.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchtune.utils import get_logger

from torchtune_qwenvl.models.glm4v import GLM4VImageTransform, GLM4VVideoTransform
from torchtune_qwenvl.vision.guides.glm4v_encoder import VisionConfig, VisionModel
from torchtune_qwenvl.vision.pipeline import VisionPipeline

log = get_logger("INFO")
debug = logging.getLogger(__name__).debug


class VisionProcessor:
    """Images and clips to patches, as GLM-4.1V's processor does it.

    Args:
        config: sizes of the model; None: `VisionConfig()`.
        min_pixels: fewest pixels of a resized image, its T frames counted; None: GLM-4.1V's.
        max_pixels: the most; the knob for speed and memory.
    """

    def __init__(
        self,
        config: VisionConfig | None = None,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> None:
        self.config = config = config or VisionConfig()
        patches: dict[str, Any] = {
            "patch_size": config.patch_size,
            "merge_size": config.spatial_merge_size,
            "temporal_patch_size": config.temporal_patch_size,
        }
        limits = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        given: dict[str, Any] = {name: value for name, value in limits.items() if value is not None}
        self.images = GLM4VImageTransform(**patches, **given)
        self.videos = GLM4VVideoTransform(**patches)

    def __call__(
        self, images: Any = None, videos: Any = None, return_tensors: str | None = "pt"
    ) -> dict[str, Tensor]:
        """`pixel_values` [n, c·T·p·p] and `image_grid_thw` [images, 3]; of clips `…_videos` and
        `video_grid_thw`.

        Args:
            images: an image or a list: path, bytes, PIL image, array or tensor.
            videos: a list of clips, each a path or a list of frames.
            return_tensors: "pt", nothing else.

        Raises:
            ValueError: neither images nor videos, or another kind of tensors; a bad file is named.
        """
        if return_tensors not in ("pt", None):
            raise ValueError(f'return_tensors: expected "pt", got {return_tensors!r}')
        if images is None and videos is None:
            raise ValueError("expected images or videos, got neither")
        found: dict[str, Tensor] = {}
        if images is not None:
            images = images if isinstance(images, list | tuple) else [images]
            found |= _joined("pixel_values", "image_grid_thw", [self._image(image) for image in images])
        if videos is not None:
            clips = [
                self.videos.patches(self.videos.plan(video, source_fps=_rate(video))) for video in videos
            ]
            found |= _joined("pixel_values_videos", "video_grid_thw", clips)
        return found

    def get_number_of_image_patches(self, height: int, width: int) -> int:
        """Patches of an image of this size after its resize: 256 of 224 x 224, 1024 of 448 x 448."""
        limits = (self.images.min_pixels, self.images.max_pixels)
        height, width = self.images.resize_to(height, width, *limits)
        return (height // self.config.patch_size) * (width // self.config.patch_size)

    def _image(self, image: Any) -> tuple[Tensor, tuple[int, int, int]]:
        planned = self.images.plan(image)
        debug(
            f"{planned.opened.where}: {planned.opened.height} x {planned.opened.width} resized to "
            f"{planned.height} x {planned.width}"
        )
        return self.images.patches(planned)


def create_glm4v_vision_encoder(
    config: VisionConfig | None = None,
) -> tuple[VisionConfig, VisionModel, VisionProcessor]:
    """(config, model, processor) with random weights: 891,595,264 parameters by default."""
    config = config or VisionConfig()
    log.warning("the encoder has random weights: VisionModel.from_pretrained(folder) loads trained ones")
    return config, VisionModel(config).eval(), VisionProcessor(config)


def encode_image(
    image: Any, model: Any = None, processor: VisionProcessor | None = None, return_grid: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Visual tokens [n, w] of one image.

    Args:
        image: path, bytes, PIL image, array or tensor.
        model: a `VisionModel` or a `VisionPipeline`; None: a `VisionModel` with random weights, built once.
        processor: that of the `VisionModel`; None: one of its config.
        return_grid: also return the grid [1, 3] in patches.
    """
    if isinstance(model, VisionPipeline):
        features = model(image)
        return (features.tokens[0], torch.tensor(features.grids)) if return_grid else features.tokens[0]
    if model is None:
        model, processor = _random_encoder()
    processor = processor or VisionProcessor(model.config)
    inputs = processor(images=[image])
    grid = inputs["image_grid_thw"]
    like = model.encoder.patch_embed.weight
    with torch.set_grad_enabled(model.training and torch.is_grad_enabled()):
        tokens = model.get_image_features(inputs["pixel_values"].to(like.device, like.dtype), grid)[0]
    return (tokens, grid) if return_grid else tokens


def encode_images(
    images: Sequence[Any], model: Any = None, processor: VisionProcessor | None = None, batch_size: int = 1
) -> list[Tensor]:
    """Visual tokens [n_i, w] of several images.

    Args:
        images: see `encode_image`.
        model: see `encode_image`.
        processor: see `encode_image`.
        batch_size: images that go through the encoder at once; it changes the speed alone.

    Raises:
        ValueError: no images, or a batch size below 1.
    """
    if batch_size < 1 or not len(images):
        raise ValueError(
            f"expected images and a batch_size of at least 1, got {len(images)} and {batch_size}"
        )
    if isinstance(model, VisionPipeline):
        return list(model(list(images)).tokens)
    if model is None:
        model, processor = _random_encoder()
    processor = processor or VisionProcessor(model.config)
    like = model.encoder.patch_embed.weight
    found: list[Tensor] = []
    for start in range(0, len(images), batch_size):
        inputs = processor(images=list(images[start : start + batch_size]))
        with torch.set_grad_enabled(model.training and torch.is_grad_enabled()):
            pixels = inputs["pixel_values"].to(like.device, like.dtype)
            found += model.get_image_features(pixels, inputs["image_grid_thw"])
    return found


@functools.cache
def _random_encoder() -> tuple[VisionModel, VisionProcessor]:
    _, model, processor = create_glm4v_vision_encoder()
    return model, processor


def _joined(pixels: str, grids: str, read: list[tuple[Tensor, tuple[int, int, int]]]) -> dict[str, Tensor]:
    return {
        pixels: torch.cat([patches for patches, _ in read]),
        grids: torch.tensor([grid for _, grid in read]),
    }


def _rate(video: Any) -> float | None:
    """Frames given one by one have no rate; the encoder alone does not need one."""
    return 1.0 if isinstance(video, list | tuple) else None
