"""The size to which the frames of a video are resized, with limits per frame or for the whole video.

Sources: transformers' video processors and, for the pixel budget of a video, qwen-vl-utils.
"""

from __future__ import annotations

from torchtune_qwenvl.transforms.errors import BadSample
from torchtune_qwenvl.transforms.images.resize import smart_resize, smart_resize_frames
from torchtune_qwenvl.transforms.videos.settings import VideoSettings


def resize_by_frame(height: int, width: int, n_frames: int, limits: VideoSettings) -> tuple[int, int]:
    """Resize as images, with limits per frame and a share of `total_pixels`: Qwen2-VL and Qwen2.5-VL.

    The share is at least 1.05 `min_pixels`, as in qwen-vl-utils.
    """
    most = min(limits.max_pixels, limits.frame_pixels or limits.max_pixels)
    if limits.total_pixels is not None:
        share = limits.total_pixels * limits.temporal_patch_size // n_frames
        most = max(min(most, share), int(limits.min_pixels * 1.05))
    factor = limits.patch_size * limits.merge_size
    return smart_resize(height, width, factor=factor, min_pixels=limits.min_pixels, max_pixels=most)


def resize_by_clip(height: int, width: int, n_frames: int, limits: VideoSettings) -> tuple[int, int]:
    """Resize with limits for all frames of the video together: Qwen3-VL and GLM."""
    size, low, most = limits.temporal_patch_size, limits.min_pixels, limits.max_pixels
    if n_frames < size:
        raise BadSample(
            f"expected {size} frames or more, got {n_frames}", fix="give a single frame as an image"
        )
    if limits.frame_pixels is not None:
        most = max(min(limits.frame_pixels, most // n_frames), int(low * 1.05)) * n_frames
    if limits.total_pixels is not None:
        most = max(min(most, limits.total_pixels * size), int(low * 1.05))
    return smart_resize_frames(
        height,
        width,
        n_frames=n_frames,
        temporal_factor=size,
        factor=limits.patch_size * limits.merge_size,
        min_pixels=low,
        max_pixels=most,
    )
