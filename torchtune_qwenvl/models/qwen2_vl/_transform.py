"""Qwen2-VL's transform: Qwen2.5-VL's template and image settings, with the first 14 of its added tokens.

Sources: the published 2B's config.json, chat template and preprocessor_config.json. The 14 names in their
order: special_tokens_map.json of Qwen2-VL-7B-Instruct-GPTQ-Int4, duplicated as morthens/qwen2-vl-infer,
revision 5a8a6ea; seven ids in config.json fit it.
"""

from __future__ import annotations

from torchtune_qwenvl.models.published import Published
from torchtune_qwenvl.models.published_transform import PublishedTransform
from torchtune_qwenvl.models.qwen2_5_vl._boxes import GROUNDING
from torchtune_qwenvl.models.qwen2_5_vl._transform import ADDED_TOKENS, CHAT, Qwen2_5_VLImageTransform
from torchtune_qwenvl.models.qwen2_vl._boxes import PER_MILLE
from torchtune_qwenvl.models.qwen2_vl._video import Qwen2VLVideoTransform


class Qwen2VLImageTransform(Qwen2_5_VLImageTransform):
    """`ImageTransform` with Qwen2-VL's values as defaults, which are Qwen2.5-VL's: see there."""


class Qwen2VLTransform(PublishedTransform):
    """Tokenizer and transform of Qwen2-VL: see `PublishedTransform`.

    Example:
        >>> transform = Qwen2VLTransform("vocab.json", "merges.txt", max_seq_len=4096, dtype="uint8")
    """

    published = Published(
        chats={"qwen2": CHAT},
        added_tokens=tuple(token for token in ADDED_TOKENS if token.special),
        image=Qwen2VLImageTransform,
        videos={"Qwen2VLVideoProcessor": Qwen2VLVideoTransform},
        video_limits_of_images=True,
        boxes=PER_MILLE,
        grounding=GROUNDING,
    )


qwen2_vl_transform = Qwen2VLTransform.build
load_qwen2_vl_transform = Qwen2VLTransform.load
