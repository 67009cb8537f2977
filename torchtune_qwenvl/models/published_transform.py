"""The transform of a published family: its tokens, chat formats and image settings, or a folder's own.

A family is a subclass with `published` filled; constructor, loader and the builder for YAML are the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torchtune.data import PromptTemplateInterface
from torchtune.data._prompt_templates import _get_prompt_template, _TemplateType

from torchtune_qwenvl.arguments import takes_arguments_of
from torchtune_qwenvl.models.published import Published
from torchtune_qwenvl.transforms.chat.template_check import (
    PROBE_TOOLS,
    TOOL_PROBES,
    VIDEO_PROBES,
    check_template,
)
from torchtune_qwenvl.transforms.chat.tokenizer import BPETokenizer
from torchtune_qwenvl.transforms.chat.truncation import Policy
from torchtune_qwenvl.transforms.processor_folder import extra_tokens, read_processor_folder
from torchtune_qwenvl.transforms.vision_language import VisionLanguageTransform

if TYPE_CHECKING:
    from typing_extensions import Self


class PublishedTransform(VisionLanguageTransform):
    """Tokenizer and transform of a family; samples, labels and policies as `VisionLanguageTransform` says.

    Args:
        path: vocab.json or tokenizer.json.
        merges_file: merges.txt beside a vocab.json.
        chat: name of the chat format, one of `published.chats`; default the first.
        enable_thinking: that of the chat template, where it has it (GLM-4.5V's and GLM-4.6V's): False asks
            for answers without reasoning, in training as in prompts; None: what the template does by itself.
        patch_size, temporal_patch_size, merge_size, min_pixels, max_pixels, image_mean, image_std, dtype,
            max_image_pixels: of `ImageTransform`; None: the family's.
        fps, num_frames, min_frames, max_frames, max_duration, video_min_pixels, video_max_pixels,
            video_frame_pixels, video_total_pixels, decode_timeout: of `VideoSettings`; None: the family's.
        video_processor: name of the rules for videos, one of `published.videos`; default the first.
        tokens_per_second, no_video: of `VisionLanguageTransform`; None: the family's, videos are taken.
        no_tools: why lists of tools and calls are refused; None: they are taken if the chat format has them.
        max_seq_len, truncation, prompt_template, stop_tokens: of `VisionLanguageTransform`.
        special_tokens_path: a tokenizer.json or tokenizer_config.json that lists the added tokens; default:
            the family's with a vocab.json, the file's own with a tokenizer.json.
        tokenizer: a ready one instead of `path`.
        context_length: of `VisionLanguageTransform`.
    """

    published: ClassVar[Published]

    def __init__(
        self,
        path: str | Path | None = None,
        merges_file: str | Path | None = None,
        *,
        chat: str | None = None,
        enable_thinking: bool | None = None,
        patch_size: int | None = None,
        temporal_patch_size: int | None = None,
        merge_size: int | None = None,
        max_seq_len: int | None = None,
        truncation: Policy = "drop_turns",
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        dtype: torch.dtype | str = torch.float32,
        max_image_pixels: int | None = None,
        fps: float | None = None,
        num_frames: int | None = None,
        min_frames: int | None = None,
        max_frames: int | None = None,
        video_min_pixels: int | None = None,
        video_max_pixels: int | None = None,
        max_duration: float | None = None,
        video_frame_pixels: int | None = None,
        video_total_pixels: int | None = None,
        decode_timeout: float | None = None,
        video_processor: str | None = None,
        tokens_per_second: float | None = None,
        no_video: str | None = None,
        no_tools: str | None = None,
        special_tokens_path: str | Path | None = None,
        prompt_template: PromptTemplateInterface | None = None,
        stop_tokens: Sequence[int] | None = None,
        tokenizer: BPETokenizer | None = None,
        context_length: int | None = None,
    ) -> None:
        if (path is None) == (tokenizer is None):
            raise ValueError("give either path (vocab.json or tokenizer.json) or a ready tokenizer")
        if tokenizer is None:
            assert path is not None
            tokenizer = self._tokenizer(path, merges_file, special_tokens_path)
        patches: dict[str, Any] = {
            "patch_size": patch_size,
            "temporal_patch_size": temporal_patch_size,
            "merge_size": merge_size,
            "image_mean": image_mean,
            "image_std": image_std,
            "dtype": dtype,
        }
        image = {"min_pixels": min_pixels, "max_pixels": max_pixels, "max_image_pixels": max_image_pixels}
        video = {
            "fps": fps,
            "num_frames": num_frames,
            "min_frames": min_frames,
            "max_frames": max_frames,
            "min_pixels": video_min_pixels,
            "max_pixels": video_max_pixels,
            "max_duration": max_duration,
            "frame_pixels": video_frame_pixels,
            "total_pixels": video_total_pixels,
            "max_frame_pixels": max_image_pixels,
            "decode_timeout": decode_timeout,
        }
        chat_format = self.published.chat(chat, video_processor, enable_thinking)
        if no_tools is not None:
            chat_format = replace(chat_format, tools=None, no_tools=no_tools)
        super().__init__(
            tokenizer,
            chat_format,
            self.published.image(**_given(patches | image)),
            self.published.video_rules(video_processor)(**_given(patches | video)),
            tokens_per_second=tokens_per_second or self.published.tokens_per_second,
            no_video=no_video,
            max_seq_len=max_seq_len,
            truncation=truncation,
            prompt_template=prompt_template,
            stop_tokens=stop_tokens,
            context_length=context_length,
        )

    @classmethod
    @takes_arguments_of(__init__)
    def build(
        cls,
        path: str,
        merges_file: str | None = None,
        *,
        prompt_template: _TemplateType | None = None,
        **arguments: Any,
    ) -> Self:
        """For YAML: the prompt template may be a dotted path or a dict of tags per role.

        Args:
            path, merges_file, **arguments: see the class.
            prompt_template: dotted path of a torchtune prompt template, or role -> [text before, behind].
        """
        template = None if prompt_template is None else _get_prompt_template(prompt_template)
        return cls(path, merges_file, prompt_template=template, **arguments)

    @classmethod
    @takes_arguments_of(__init__)
    def load(
        cls,
        folder: str | Path,
        *,
        chat_template: str = "folder",
        prompt_template: _TemplateType | None = None,
        **overrides: Any,
    ) -> Self:
        """The transform of a checkpoint folder, every value from its files.

        Args:
            folder: has config.json, tokenizer and image processor files, as published or as transformers 5
                saves.
            chat_template: "folder": one of our renderings must equal the folder's Jinja; "builtin": go on
                without.
            prompt_template: see `build`.
            **overrides: arguments of the class instead of the folder's values.

        Raises:
            ValueError: files are missing or contradict each other, or the chat template differs.
        """
        if chat_template not in ("folder", "builtin"):
            raise ValueError(f'chat_template is "folder" or "builtin", got {chat_template!r}')
        files = read_processor_folder(folder)
        values: dict[str, Any] = {
            **files.image,
            **cls.published.about_videos(files),
            "stop_tokens": files.stop_tokens,
            "context_length": files.context_length,
        }
        values |= {name: value for name, value in overrides.items() if value is not None}
        if chat_template == "folder" and files.template is not None:
            thinking = values.get("enable_thinking")
            values["chat"] = cls._matching_chat(files.template, values.get("chat"), thinking)
            chat = cls.published.chat(values["chat"], enable_thinking=thinking)
            otherwise = "a video, which the folder's chat template writes otherwise"
            video_problem = _problem(otherwise, chat, *files.template, probes=VIDEO_PROBES)
            values["no_video"] = values["no_video"] or video_problem
            if chat.tools is not None:
                otherwise = "the folder's chat template writes tools otherwise"
                told = {"probes": TOOL_PROBES, "tools": PROBE_TOOLS}
                values.setdefault("no_tools", _problem(otherwise, chat, *files.template, **told))
        template = None if prompt_template is None else _get_prompt_template(prompt_template)
        transform = cls(tokenizer=files.tokenizer(), prompt_template=template, **values)
        files.check_token_id("image_token_id", transform.image_token_id)
        files.check_token_id("video_token_id", transform.video_token_id)
        return transform

    @classmethod
    def _matching_chat(cls, template: tuple[str, str], wanted: str | None, thinking: bool | None) -> str:
        """Name of the first chat format that renders as the folder's template does."""
        names = [wanted] if wanted is not None else list(cls.published.chats)
        problems = []
        for name in names:
            try:
                check_template(cls.published.chat(name, enable_thinking=thinking), *template)
                return name
            except ValueError as error:
                problems.append(str(error) if len(names) == 1 else f"as {name}: {error}")
        raise ValueError("; ".join(problems))

    @classmethod
    def _tokenizer(
        cls, path: str | Path, merges_file: str | Path | None, special_tokens_path: str | Path | None
    ) -> BPETokenizer:
        if special_tokens_path is not None:
            listed = json.loads(Path(special_tokens_path).read_text(encoding="utf-8"))
            return BPETokenizer(path, merges_file, extra_tokens=extra_tokens(listed))
        tokens = () if merges_file is None else cls.published.added_tokens
        return BPETokenizer(path, merges_file, extra_tokens=tokens)


def _problem(words: str, *checked: Any, **probes: Any) -> str | None:
    try:
        check_template(*checked, **probes)
    except ValueError as error:
        return f"{words}: {error}"
    return None


def _given(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}
