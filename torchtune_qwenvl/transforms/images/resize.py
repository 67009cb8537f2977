"""The size to which images and frames are resized: smart resize, as in the models' own preprocessing."""

from __future__ import annotations

import math
from typing import Any

from torchtune_qwenvl.transforms.errors import BadSample

MAX_ASPECT_RATIO = 200


def smart_resize(
    height: int,
    width: int,
    *,
    factor: int,
    min_pixels: int,
    max_pixels: int,
    frames: int = 1,
    counted_frames: int | None = None,
) -> tuple[int, int]:
    """Size to which the models resize: sides multiples of `factor`, area within the limits.

    3000 x 4000 with factor 28, limits 3136 and 1003520 gives 840 x 1148.

    Args:
        height, width: as decoded.
        factor: side of a merged patch.
        min_pixels, max_pixels: limits of frames x height x width.
        frames: number of frames, used to compute the size that meets a limit.
        counted_frames: number of frames used to check whether a limit is exceeded; default `frames`.

    Raises:
        BadSample: one side is over 200 times as long as the other.
    """
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise BadSample(
            f"the aspect ratio of {height} x {width} is over {MAX_ASPECT_RATIO}",
            fix="crop the image or leave it out",
        )
    # Python rounds halves to even, here as in the models' own preprocessing.
    new_height, new_width = (round(side / factor) * factor for side in (height, width))
    area = (frames if counted_frames is None else counted_frames) * new_height * new_width
    if area > max_pixels:
        shrink = math.sqrt(frames * height * width / max_pixels)
        new_height, new_width = (
            max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width)
        )
    elif area < min_pixels:
        grow = math.sqrt(min_pixels / (frames * height * width))
        new_height, new_width = (math.ceil(side * grow / factor) * factor for side in (height, width))
    return new_height, new_width


def smart_resize_frames(
    height: int,
    width: int,
    *,
    n_frames: int,
    temporal_factor: int,
    factor: int,
    min_pixels: int,
    max_pixels: int,
) -> tuple[int, int]:
    """`smart_resize` with limits for all frames of a video together.

    A side shorter than a merged patch is first stretched to one. As in the reference, the number of frames is
    rounded to a multiple of `temporal_factor` to check the limits, but not to compute the size that meets
    them.

    Args:
        height, width, factor: see `smart_resize`.
        n_frames: frames of the video; `temporal_factor` for an image.
        temporal_factor: frames per patch.
        min_pixels, max_pixels: limits of frames · height · width.
    """
    if min(height, width) < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    return smart_resize(
        height,
        width,
        factor=factor,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        frames=n_frames,
        counted_frames=round(n_frames / temporal_factor) * temporal_factor,
    )


def wanted_size(opened: Any, height: int | None, width: int | None) -> tuple[int, int]:
    """(height, width) that a sample asks for; by default the size of `opened`, an image or a video.

    Raises:
        BadSample: only one of the two is given, or they are not positive integers.
    """
    if height is None and width is None:
        return opened.height, opened.width
    if not (isinstance(height, int) and height > 0 and isinstance(width, int) and width > 0):
        raise BadSample(
            "expected resized_height and resized_width together, as positive integers, "
            f"got {height!r} and {width!r}"
        )
    return height, width
