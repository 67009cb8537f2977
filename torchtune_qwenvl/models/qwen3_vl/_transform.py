"""Qwen3-VL's transform: the published tokens, chat formats and image settings, or a folder's own instead.

Sources: the published checkpoints' tokenizer_config.json, chat template and preprocessor_config.json.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from torchtune_qwenvl.models._transform import Published, PublishedTransform
from torchtune_qwenvl.models.qwen2_5_vl._transform import ADDED_TOKENS as QWEN2_5_TOKENS
from torchtune_qwenvl.models.qwen3_vl._chat import INSTRUCT, THINKING
from torchtune_qwenvl.models.qwen3_vl._sizes import IMAGE_MEAN, IMAGE_STD
from torchtune_qwenvl.models.qwen3_vl._video import Qwen3VLVideoTransform
from torchtune_qwenvl.transforms.decode import MAX_IMAGE_PIXELS
from torchtune_qwenvl.transforms.image import ImageTransform
from torchtune_qwenvl.transforms.tokenizer import ExtraToken

ADDED_TOKENS = (
    *QWEN2_5_TOKENS,
    *(
        ExtraToken(name, special=False)
        for name in ("<tool_response>", "</tool_response>", "<think>", "</think>")
    ),
)
MIN_PIXELS = 256 * 256
MAX_PIXELS = 4096 * 4096


class Qwen3VLImageTransform(ImageTransform):
    """`ImageTransform` with Qwen3-VL's values as defaults: see there."""

    def __init__(
        self,
        *,
        patch_size: int = 16,
        temporal_patch_size: int = 2,
        merge_size: int = 2,
        min_pixels: int = MIN_PIXELS,
        max_pixels: int = MAX_PIXELS,
        image_mean: Sequence[float] = IMAGE_MEAN,
        image_std: Sequence[float] = IMAGE_STD,
        dtype: torch.dtype | str = torch.float32,
        max_image_pixels: int = MAX_IMAGE_PIXELS,
    ) -> None:
        super().__init__(
            patch_size=patch_size,
            temporal_patch_size=temporal_patch_size,
            merge_size=merge_size,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            image_mean=image_mean,
            image_std=image_std,
            dtype=dtype,
            max_image_pixels=max_image_pixels,
        )


class Qwen3VLTransform(PublishedTransform):
    """Tokenizer and transform of Qwen3-VL, dense and MoE: see `PublishedTransform`.

    `chat` is "instruct" or "thinking"; loaded from a folder it is the one that its template renders.

    Example:
        >>> transform = Qwen3VLTransform("vocab.json", "merges.txt", chat="thinking", dtype="uint8")
    """

    published = Published(
        chats={"instruct": INSTRUCT, "thinking": THINKING},
        added_tokens=ADDED_TOKENS,
        image=Qwen3VLImageTransform,
        video=Qwen3VLVideoTransform,
    )


qwen3_vl_transform = Qwen3VLTransform.build
load_qwen3_vl_transform = Qwen3VLTransform.load
