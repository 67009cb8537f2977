"""GLM-4.1V's and GLM-4.6V's transform: chat formats, image settings and the resize that counts frames.

Source: transformers' `Glm4vImageProcessor`, whose defaults these are; a folder's preprocessor_config.json
decides.
"""

from __future__ import annotations

from torchtune_qwenvl.models.glm4v._boxes import BOXED, GROUNDING
from torchtune_qwenvl.models.glm4v._chat import TENTHS_OF_SECONDS, WHOLE_SECONDS, ReasoningChat, RoleTokenChat
from torchtune_qwenvl.models.glm4v._sizes import IMAGE_MEAN, IMAGE_STD
from torchtune_qwenvl.models.glm4v._video import GLM4VVideoTransform, GLM46VVideoTransform
from torchtune_qwenvl.models.published import Published, image_defaults
from torchtune_qwenvl.models.published_transform import PublishedTransform
from torchtune_qwenvl.transforms.images.image_transform import ImageTransform
from torchtune_qwenvl.transforms.images.resize import smart_resize_frames

MIN_PIXELS = 112 * 112
MAX_PIXELS = 28 * 28 * 15000


@image_defaults(
    patch_size=14, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS, image_mean=IMAGE_MEAN, image_std=IMAGE_STD
)
class GLM4VImageTransform(ImageTransform):
    """`ImageTransform` with GLM-4.1V's values as defaults, and its resize.

    `min_pixels` and `max_pixels` count all frames: a still, as the T frames of one patch, counts T times. A
    side shorter than a merged patch is stretched to one first. 14 x 14 becomes 84 x 84, 3000 x 4000 becomes
    2100 x 2800.
    """

    def resize_to(self, height: int, width: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
        return smart_resize_frames(
            height,
            width,
            n_frames=self.temporal_patch_size,
            temporal_factor=self.temporal_patch_size,
            factor=self.patch_size * self.merge_size,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
        )


class GLM4VTransform(PublishedTransform):
    """Tokenizer and transform of GLM-4.1V and GLM-4.6V: see `PublishedTransform`.

    Example:
        >>> transform = GLM4VTransform("tokenizer.json", chat="glm4.6v", max_seq_len=4096, dtype="uint8")
    """

    published = Published(
        chats={"glm4.1v": RoleTokenChat(), "glm4.6v": ReasoningChat()},
        added_tokens=(),
        image=GLM4VImageTransform,
        videos={"Glm4vVideoProcessor": GLM4VVideoTransform, "Glm46VVideoProcessor": GLM46VVideoTransform},
        boxes=BOXED,
        grounding=GROUNDING,
        video_formats={"Glm4vVideoProcessor": WHOLE_SECONDS, "Glm46VVideoProcessor": TENTHS_OF_SECONDS},
    )


glm4v_transform = GLM4VTransform.build
load_glm4v_transform = GLM4VTransform.load
