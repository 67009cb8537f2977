"""GLM-4.5V's and GLM-4.6V's transform: turns are written alike, the seconds of a video's frames are not.

Sources: transformers' `Glm4vProcessor`, `Glm46VProcessor`; the chat template as for GLM-4.6V-Flash.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchtune_qwenvl.arguments import takes_arguments_of
from torchtune_qwenvl.models.glm4v._boxes import BOXED, GROUNDING
from torchtune_qwenvl.models.glm4v._chat import ReasoningChat, RoleTokenChat
from torchtune_qwenvl.models.glm4v._transform import GLM4VImageTransform
from torchtune_qwenvl.models.glm4v._video import GLM4VVideoTransform, GLM46VVideoTransform
from torchtune_qwenvl.models.published import Published
from torchtune_qwenvl.models.published_transform import PublishedTransform
from torchtune_qwenvl.transforms.processor_folder import processor_class

if TYPE_CHECKING:
    from typing_extensions import Self

# By the processor that the folder names: the two templates are the same.
_CHAT_OF_PROCESSOR = {"Glm4vProcessor": "glm4.5v", "Glm46VProcessor": "glm4.6v"}


class GLM4VMoeTransform(PublishedTransform):
    """Tokenizer and transform of GLM-4.5V and GLM-4.6V: see `PublishedTransform`.

    Example:
        >>> transform = GLM4VMoeTransform("tokenizer.json", chat="glm4.5v", max_seq_len=4096, dtype="uint8")
    """

    published = Published(
        chats={
            # Images in tool results came with GLM-4.6V, says its model card.
            "glm4.5v": replace(ReasoningChat(), video=RoleTokenChat().video, media_roles=("user",)),
            "glm4.6v": ReasoningChat(),
        },
        added_tokens=(),
        image=GLM4VImageTransform,
        videos={"Glm4vVideoProcessor": GLM4VVideoTransform, "Glm46VVideoProcessor": GLM46VVideoTransform},
        boxes=BOXED,
        grounding=GROUNDING,
    )

    @classmethod
    @takes_arguments_of(PublishedTransform.load)
    def load(cls, folder: str | Path, *, chat: str | None = None, **arguments: Any) -> Self:
        """See `PublishedTransform.load`; the default of `chat` depends on the folder's processor."""
        chat = chat or _CHAT_OF_PROCESSOR.get(processor_class(folder) or "")
        return super().load(folder, chat=chat, **arguments)


glm4v_moe_transform = GLM4VMoeTransform.build
load_glm4v_moe_transform = GLM4VMoeTransform.load
