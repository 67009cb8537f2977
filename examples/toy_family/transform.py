"""The toy model's transform: its chat format and its image settings; a folder's own replace these.

A folder must have config.json, a tokenizer (vocab.json and merges.txt, or tokenizer.json),
tokenizer_config.json with the added tokens, and preprocessor_config.json.
"""

from torchtune_qwenvl.models import Published, PublishedTransform, image_defaults
from torchtune_qwenvl.models.qwen2_5_vl import Qwen2_5_VLVideoTransform
from torchtune_qwenvl.transforms.chat.chat_format import ChatFormat
from torchtune_qwenvl.transforms.chat.tokenizer import ExtraToken
from torchtune_qwenvl.transforms.images.image_transform import ImageTransform
from toy_family.model import IMAGE_MEAN, IMAGE_STD

CHAT = ChatFormat(roles={"system": "setting", "user": "human", "assistant": "bot"}, default_system=None)
ADDED_TOKENS = tuple(
    ExtraToken(f"<|{name}|>", special=True)
    for name in (
        *("endoftext", "im_start", "im_end", "vision_start"),
        *("vision_end", "vision_pad", "image_pad", "video_pad"),
    )
)


@image_defaults(
    patch_size=8, min_pixels=16 * 16, max_pixels=64 * 64, image_mean=IMAGE_MEAN, image_std=IMAGE_STD
)
class ToyVLImageTransform(ImageTransform):
    """`ImageTransform` with the toy model's defaults."""


class ToyVLTransform(PublishedTransform):
    """Tokenizer and transform of the toy model: see `PublishedTransform`."""

    published = Published(
        chats={"toy": CHAT},
        added_tokens=ADDED_TOKENS,
        image=ToyVLImageTransform,
        videos={"Qwen2VLVideoProcessor": Qwen2_5_VLVideoTransform},
        video_limits_of_images=True,
    )


load_toy_vl_transform = ToyVLTransform.load
