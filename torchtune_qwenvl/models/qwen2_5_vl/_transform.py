"""Qwen2.5-VL's transform: the published tokens, chat format and image settings, and a folder's own instead.

Sources: the published checkpoints' tokenizer_config.json, chat template and preprocessor_config.json.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from torchtune_qwenvl.models._transform import Published, PublishedTransform
from torchtune_qwenvl.models.qwen2_5_vl._sizes import IMAGE_MEAN, IMAGE_STD
from torchtune_qwenvl.models.qwen2_5_vl._video import Qwen2_5_VLVideoTransform
from torchtune_qwenvl.transforms.chat import ChatFormat
from torchtune_qwenvl.transforms.decode import MAX_IMAGE_PIXELS
from torchtune_qwenvl.transforms.image import ImageTransform
from torchtune_qwenvl.transforms.tokenizer import ExtraToken

CHAT = ChatFormat(
    roles={"system": "system", "user": "user", "assistant": "assistant", "ipython": "tool"},
    default_system="You are a helpful assistant.",
)

# In the order of their ids, from the end of the base vocabulary (151643) on.
ADDED_TOKENS = (
    *(
        ExtraToken(f"<|{name}|>", special=True)
        for name in (
            *(
                "endoftext",
                "im_start",
                "im_end",
                "object_ref_start",
                "object_ref_end",
                "box_start",
                "box_end",
            ),
            *("quad_start", "quad_end", "vision_start", "vision_end", "vision_pad", "image_pad", "video_pad"),
        )
    ),
    *(
        ExtraToken(name, special=False)
        for name in (
            *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"),
            *("<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
        )
    ),
)

MIN_PIXELS = 56 * 56
MAX_PIXELS = 28 * 28 * 1280


class Qwen2_5_VLImageTransform(ImageTransform):
    """`ImageTransform` with Qwen2.5-VL's values as defaults: see there."""

    def __init__(
        self,
        *,
        patch_size: int = 14,
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


class Qwen2_5_VLTransform(PublishedTransform):
    """Tokenizer and transform of Qwen2.5-VL: see `PublishedTransform`.

    Example:
        >>> transform = Qwen2_5_VLTransform("vocab.json", "merges.txt", max_seq_len=4096, dtype="uint8")
        >>> sample = transform({"messages": [Message("user", [{"type": "image", "content": "cat.jpg"}]),
        ...                                  Message("assistant", "A cat.")]})
    """

    published = Published(
        chats={"qwen2": CHAT},
        added_tokens=ADDED_TOKENS,
        image=Qwen2_5_VLImageTransform,
        video=Qwen2_5_VLVideoTransform,
    )


qwen2_5_vl_transform = Qwen2_5_VLTransform.build
load_qwen2_5_vl_transform = Qwen2_5_VLTransform.load
