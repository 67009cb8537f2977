"""What a family's published checkpoints have in common, what a folder changes of it, and the arguments of
its transform for videos."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch

from torchtune_qwenvl.arguments import takes_arguments_of
from torchtune_qwenvl.transforms.boxes.convention import BoxConvention
from torchtune_qwenvl.transforms.chat.chat_format import ChatFormat
from torchtune_qwenvl.transforms.chat.tokenizer import WORDS, ExtraToken
from torchtune_qwenvl.transforms.chat.video_format import VideoFormat
from torchtune_qwenvl.transforms.images.image_transform import ImageTransform
from torchtune_qwenvl.transforms.processor_folder import ProcessorFolder
from torchtune_qwenvl.transforms.processor_settings import PATCHES
from torchtune_qwenvl.transforms.videos.video_transform import VideoTransform

_T = TypeVar("_T")
_Images = TypeVar("_Images", bound=type[ImageTransform])


def image_defaults(**defaults: Any) -> Callable[[_Images], _Images]:
    """A decorator: these arguments of `ImageTransform` become defaults of a subclass's constructor."""

    def decorate(transform: _Images) -> _Images:
        @takes_arguments_of(ImageTransform, **defaults)
        def __init__(self: ImageTransform, **settings: Any) -> None:
            ImageTransform.__init__(self, **settings)

        __init__.__qualname__ = f"{transform.__qualname__}.__init__"
        transform.__init__ = __init__  # type: ignore[method-assign]
        return transform

    return decorate


@dataclass(frozen=True, kw_only=True)
class VideoArguments:
    """Arguments of a transform that are for videos only; None: the family's value.

    Args:
        fps: frames to read per second.
        num_frames: frames to read of every video, instead of `fps`.
        min_frames: read at least so many.
        max_frames: read at most so many.
        max_duration: seconds; a longer video gets no more frames than one of this length (GLM).
        video_min_pixels: lower limit of the resized area: of a frame or of the clip, as the family counts.
        video_max_pixels: upper limit of the same.
        video_frame_pixels: a further upper limit, of one frame's area.
        video_total_pixels: a further upper limit, of a clip's area. T frames, which make one temporal patch,
            count once; (patch_size * merge_size)² pixels are one token.
        decode_timeout: seconds that reading one file may take.
    """

    fps: float | None = None
    num_frames: int | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    max_duration: float | None = None
    video_min_pixels: int | None = None
    video_max_pixels: int | None = None
    video_frame_pixels: int | None = None
    video_total_pixels: int | None = None
    decode_timeout: float | None = None

    def settings(self) -> dict[str, Any]:
        """The same as arguments of `VideoSettings`, which has no prefix in its names."""
        return {field.name.removeprefix("video_"): getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class Published:
    """What a family's published checkpoints have in common.

    Args:
        chats: chat formats by name; the first is the default.
        added_tokens: in the order of their ids, which continue the base vocabulary.
        image: the image transform with the family's defaults.
        videos: the video transforms with the family's defaults, by the name of transformers' processor; the
            first is the default.
        tokens_per_second: temporal positions per second of a clip; None: one per temporal patch.
        video_limits_of_images: what to do if a folder has no file for videos. True: limit a frame as an image
            is limited, as transformers does. False: refuse videos.
        video_formats: how videos are written, by the name of their processor, if that depends on the
            processor and not on the chat format.
        words: how a vocab.json's text is split into words before BPE.
        boxes: how boxes and points are written; None: records with boxes are refused.
        grounding: the tokens of objects, boxes and points, which the setting `text_tokens: grounding` names.
    """

    chats: dict[str, ChatFormat]
    added_tokens: tuple[ExtraToken, ...]
    image: type[ImageTransform]
    videos: dict[str, type[VideoTransform]]
    tokens_per_second: float | None = None
    video_limits_of_images: bool = False
    video_formats: dict[str, VideoFormat] = field(default_factory=dict)
    words: str = WORDS
    boxes: BoxConvention | None = None
    grounding: tuple[str, ...] = ()

    def chat(
        self, name: str | None, video_processor: str | None = None, enable_thinking: bool | None = None
    ) -> ChatFormat:
        """The chat format of this name, with videos as this processor writes them; None: the first.

        Raises:
            ValueError: an unknown name, or a format without the switch `enable_thinking`.
        """
        chat = _named(self.chats, name, "chat").with_thinking(enable_thinking)
        video = self.video_formats.get(video_processor or next(iter(self.videos)))
        return chat if video is None else replace(chat, video=video)

    def video_rules(self, name: str | None) -> type[VideoTransform]:
        """The video transform of this name; None: the first."""
        return _named(self.videos, name, "video_processor")

    def about_videos(self, files: ProcessorFolder) -> dict[str, Any]:
        """Arguments of `PublishedTransform`: a folder's values for videos, or the reason to refuse videos."""
        video, processor, problem = files.video, files.video_processor, None
        if video is None and self.video_limits_of_images:
            video = {f"video_{limit}": files.image[limit] for limit in ("min_pixels", "max_pixels")}
        if video is None:
            problem = f"{files.path} has no video_preprocessor_config.json: copy the checkpoint's"
        if processor is not None and processor not in self.videos:
            problem = f"{files.path} names {processor} for it, expected {' or '.join(self.videos)}"
            processor = None
        tokens_per_second = files.vision_config.get("tokens_per_second")
        if self.tokens_per_second is not None and tokens_per_second is None:
            problem = f"{files.path}/config.json does not say vision_config.tokens_per_second"
        return {
            **self.video_rules(processor).known(video or {}),
            "video_processor": processor,
            "tokens_per_second": tokens_per_second,
            "no_video": problem and f"a video, but {problem}",
        }

    def media(
        self, files: ProcessorFolder, dtype: torch.dtype, **limits: int
    ) -> tuple[ImageTransform, VideoTransform | None]:
        """The folder's transforms of images and of videos without a text around them; None: no videos.

        Args:
            files: the folder's parsed files.
            dtype: of the patches.
            **limits: `min_pixels` and `max_pixels` of images instead of the folder's.
        """
        image = self.image(**{**files.image, **limits}, dtype=dtype)
        if files.video is None and not self.video_limits_of_images:
            return image, None
        rules = self.video_rules(files.video_processor if files.video_processor in self.videos else None)
        found = rules.known(files.video or {})
        settings = {name.removeprefix("video_"): value for name, value in found.items()}
        patches = {name: files.image[name] for name in PATCHES}
        return image, rules(**patches, **settings, dtype=dtype)


def _named(table: dict[str, _T], name: str | None, argument: str) -> _T:
    if name is not None and name not in table:
        raise ValueError(f"{argument}: this family has {', '.join(table)}, got {name!r}")
    return table[name or next(iter(table))]
