"""The image and video transforms that fit an encoder: a folder's own, or those of a plain ViT."""

from __future__ import annotations

from pathlib import Path

import torch

from torchtune_qwenvl.models import load_media_transforms
from torchtune_qwenvl.models.vit import MODEL_TYPES
from torchtune_qwenvl.modules.vision.transformer import VisionTransformer
from torchtune_qwenvl.transforms.images.image_transform import ImageTransform
from torchtune_qwenvl.transforms.videos.video_transform import VideoTransform

MAX_PATCHES = 16384  # of one image without a limit of its own


def media_transforms(
    folder: str | Path, encoder: VisionTransformer, **limits: int | None
) -> tuple[ImageTransform, VideoTransform | None]:
    """The folder's transforms of images and videos, as bytes.

    Args:
        folder: where the encoder came from.
        encoder: the encoder.
        **limits: `min_pixels` and `max_pixels` of images instead of the folder's.
    """
    given = {name: limit for name, limit in limits.items() if limit is not None}
    if encoder.config is not None and encoder.config["model_type"] in MODEL_TYPES:
        return plain_transform(encoder, **given), None
    return load_media_transforms(folder, dtype=torch.uint8, **given)


def plain_transform(encoder: VisionTransformer, **limits: int) -> ImageTransform:
    """The image transform of a plain ViT: one frame per patch, its own statistics.

    Raises:
        ValueError: an encoder without image_mean and image_std.
    """
    embed = encoder.patch_embed
    if embed.scale is None:
        raise ValueError(
            f"an encoder of {embed.channels} channels needs image_mean and image_std, a number per channel"
        )
    side = embed.patch * encoder.merge
    return ImageTransform(
        patch_size=embed.patch,
        temporal_patch_size=embed.frames,
        merge_size=encoder.merge,
        image_mean=embed.scale[0],
        image_std=embed.scale[1],
        dtype=torch.uint8,
        min_pixels=limits.get("min_pixels", side**2),
        max_pixels=limits.get("max_pixels", MAX_PATCHES * embed.patch**2),
    )
