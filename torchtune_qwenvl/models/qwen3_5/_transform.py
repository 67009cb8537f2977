"""Qwen3.5's transform: the published tokens and chat format, or a folder's own instead; images as Qwen3-VL's.

The base vocabulary has 248,044 entries. `<|endoftext|>` is 248044, `<|image_pad|>` 248056, as config.json
says. Words keep combining marks with their letters, unlike Qwen2's to Qwen3's. Source: transformers'
`Qwen3_5Tokenizer`. Added tokens after `</think>` were not to be found; a folder's tokenizer.json or
tokenizer_config.json has them.
"""

from __future__ import annotations

from torchtune_qwenvl.models.published import Published
from torchtune_qwenvl.models.published_transform import PublishedTransform
from torchtune_qwenvl.models.qwen3_5._chat import CHAT
from torchtune_qwenvl.models.qwen3_vl import Qwen3VLImageTransform, Qwen3VLVideoTransform
from torchtune_qwenvl.models.qwen3_vl._transform import ADDED_TOKENS

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Qwen3_5Transform(PublishedTransform):
    """Tokenizer and transform of Qwen3.5, dense and MoE: see `PublishedTransform`.

    `enable_thinking=False` opens a prompt's answer with an empty block of reasoning, as the template does.

    Example:
        >>> transform = Qwen3_5Transform("vocab.json", "merges.txt", enable_thinking=False)
    """

    published = Published(
        chats={"thinking": CHAT},
        added_tokens=ADDED_TOKENS,
        image=Qwen3VLImageTransform,
        videos={"Qwen3VLVideoProcessor": Qwen3VLVideoTransform},
        words=WORDS,
    )


qwen3_5_transform = Qwen3_5Transform.build
load_qwen3_5_transform = Qwen3_5Transform.load
