"""Qwen3-VL's transform: the published tokens, chat formats and image settings, or a folder's own instead.

Sources: the published checkpoints' tokenizer_config.json (Qwen3-VL-32B-Thinking-FP8's, see `_chat.py`), chat
template and preprocessor_config.json.
"""

from __future__ import annotations

from torchtune_qwenvl.models.published import Published, image_defaults
from torchtune_qwenvl.models.published_transform import PublishedTransform
from torchtune_qwenvl.models.qwen2_5_vl._boxes import GROUNDING
from torchtune_qwenvl.models.qwen2_5_vl._transform import ADDED_TOKENS as QWEN2_5_TOKENS
from torchtune_qwenvl.models.qwen3_vl._boxes import JSON_PER_MILLE
from torchtune_qwenvl.models.qwen3_vl._chat import INSTRUCT, THINKING
from torchtune_qwenvl.models.qwen3_vl._sizes import IMAGE_MEAN, IMAGE_STD
from torchtune_qwenvl.models.qwen3_vl._video import Qwen3VLVideoTransform
from torchtune_qwenvl.transforms.chat.tokenizer import ExtraToken
from torchtune_qwenvl.transforms.images.image_transform import ImageTransform

ADDED_TOKENS = (
    *QWEN2_5_TOKENS,
    *(
        ExtraToken(name, special=False)
        for name in ("<tool_response>", "</tool_response>", "<think>", "</think>")
    ),
)
MIN_PIXELS = 256 * 256
MAX_PIXELS = 4096 * 4096


@image_defaults(
    patch_size=16, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS, image_mean=IMAGE_MEAN, image_std=IMAGE_STD
)
class Qwen3VLImageTransform(ImageTransform):
    """`ImageTransform` with Qwen3-VL's values as defaults: see there."""


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
        videos={"Qwen3VLVideoProcessor": Qwen3VLVideoTransform},
        boxes=JSON_PER_MILLE,
        grounding=GROUNDING,
    )


qwen3_vl_transform = Qwen3VLTransform.build
load_qwen3_vl_transform = Qwen3VLTransform.load
