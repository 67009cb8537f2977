"""Qwen2.5-VL's transform: the published tokens, chat format and image settings, and a folder's own instead.

Sources: the published checkpoints' tokenizer_config.json, chat template and preprocessor_config.json.
"""

from __future__ import annotations

from torchtune_qwenvl.models.published import Published, image_defaults
from torchtune_qwenvl.models.published_transform import PublishedTransform
from torchtune_qwenvl.models.qwen2_5_vl._boxes import GROUNDING, PIXELS
from torchtune_qwenvl.models.qwen2_5_vl._sizes import IMAGE_MEAN, IMAGE_STD
from torchtune_qwenvl.models.qwen2_5_vl._video import Qwen2_5_VLVideoTransform
from torchtune_qwenvl.transforms.chat.chat_format import ChatFormat
from torchtune_qwenvl.transforms.chat.tokenizer import ExtraToken
from torchtune_qwenvl.transforms.images.image_transform import ImageTransform

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
# transformers' default; the published folders say 12,845,056, which counts when one is loaded.
MAX_PIXELS = 28 * 28 * 1280


@image_defaults(
    patch_size=14, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS, image_mean=IMAGE_MEAN, image_std=IMAGE_STD
)
class Qwen2_5_VLImageTransform(ImageTransform):
    """`ImageTransform` with Qwen2.5-VL's values as defaults: see there."""


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
        videos={"Qwen2VLVideoProcessor": Qwen2_5_VLVideoTransform},
        tokens_per_second=2,
        video_limits_of_images=True,
        boxes=PIXELS,
        grounding=GROUNDING,
    )


qwen2_5_vl_transform = Qwen2_5_VLTransform.build
load_qwen2_5_vl_transform = Qwen2_5_VLTransform.load
