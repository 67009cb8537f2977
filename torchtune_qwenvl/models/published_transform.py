"""The transform of a published family: its tokens, chat formats and image settings, or a folder's own.

A family is a subclass with `published` filled. Constructor, loader and the builder for YAML are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torchtune.data._prompt_templates import _get_prompt_template, _TemplateType

from torchtune_qwenvl.arguments import keyword_arguments, takes_arguments_of
from torchtune_qwenvl.json_files import read_json
from torchtune_qwenvl.models.published import Published, VideoArguments
from torchtune_qwenvl.transforms.chat.template_check import (
    PROBE_TOOLS,
    TOOL_PROBES,
    VIDEO_PROBES,
    check_template,
)
from torchtune_qwenvl.transforms.chat.text_tokens import text_tokens_of
from torchtune_qwenvl.transforms.chat.tokenizer import BPETokenizer, ExtraToken
from torchtune_qwenvl.transforms.images.image_transform import ImageTransform
from torchtune_qwenvl.transforms.processor_folder import extra_tokens, read_processor_folder
from torchtune_qwenvl.transforms.vision_language import VisionLanguageTransform

if TYPE_CHECKING:
    from typing_extensions import Self


_IMAGE_ARGUMENTS = keyword_arguments(ImageTransform)
_VIDEO_ARGUMENTS = keyword_arguments(VideoArguments)
_STILLS_ONLY = ("min_pixels", "max_pixels", "max_image_pixels")
# What a family or a folder decides, so that the constructor's default is None.
_FAMILYS_VALUE = dict.fromkeys(name for name in _IMAGE_ARGUMENTS if name != "dtype")


class PublishedTransform(VisionLanguageTransform):
    """Tokenizer and transform of a family; samples, labels and policies as `VisionLanguageTransform` says.

    The constructor also has the arguments of `ImageTransform`, `VideoArguments` and
    `VisionLanguageTransform`.
    """

    published: ClassVar[Published]

    @takes_arguments_of(ImageTransform, VideoArguments, VisionLanguageTransform, **_FAMILYS_VALUE)
    def __init__(
        self,
        path: str | Path | None = None,
        merges_file: str | Path | None = None,
        *,
        chat: str | None = None,
        enable_thinking: bool | None = None,
        video_processor: str | None = None,
        no_tools: str | None = None,
        special_tokens_path: str | Path | None = None,
        tokenizer: BPETokenizer | None = None,
        text_tokens: Sequence[str] | str = (),
        **settings: Any,
    ) -> None:
        """An argument that is None leaves the family's value.

        Args:
            path: vocab.json or tokenizer.json.
            merges_file: merges.txt, if `path` is a vocab.json.
            chat: name of the chat format, one of `published.chats`; default: the first.
            enable_thinking: the chat template's switch of that name (GLM-4.5V, GLM-4.6V). False asks for
                answers without reasoning, in training as in prompts; None: the template's default.
            video_processor: name of the rules for videos, one of `published.videos`; default: the first.
            no_tools: why lists of tools and calls are refused; None: they are accepted if the chat format
                has them.
            special_tokens_path: a tokenizer.json or tokenizer_config.json that lists the added tokens.
                Default: the family's with a vocab.json, the file's own with a tokenizer.json.
            tokenizer: a ready one instead of `path`.
            text_tokens: added tokens that text may hold: they become their single ids, as in transformers.
                All other special tokens in text stay letters. "grounding" stands for the family's marks of
                objects, boxes and points.

        Raises:
            ValueError: neither or both of `path` and `tokenizer`, or a value that does not exist or fit.
        """
        if (path is None) == (tokenizer is None):
            raise ValueError("give either path (vocab.json or tokenizer.json) or a ready tokenizer")
        if tokenizer is None:
            assert path is not None
            tokenizer = self._tokenizer(path, merges_file, special_tokens_path)
        chat_format = self.published.chat(chat, video_processor, enable_thinking)
        if no_tools is not None:
            chat_format = replace(chat_format, tools=None, no_tools=no_tools)
        ends = {
            name for name, i in tokenizer.special_tokens.items() if i in (tokenizer.eos_id, tokenizer.pad_id)
        }
        reserved = {*chat_format.special_names, *chat_format.stops, *ends}
        names = text_tokens_of(text_tokens, self.published.grounding, reserved)
        tokenizer = tokenizer.with_text_tokens(names)
        image = {name: settings.pop(name) for name in _IMAGE_ARGUMENTS if name in settings}
        clips = VideoArguments(**{name: settings.pop(name) for name in _VIDEO_ARGUMENTS if name in settings})
        shared = {name: value for name, value in image.items() if name not in _STILLS_ONLY}
        video = {**shared, **clips.settings(), "max_frame_pixels": image["max_image_pixels"]}
        settings["tokens_per_second"] = settings.get("tokens_per_second") or self.published.tokens_per_second
        super().__init__(
            tokenizer,
            chat_format,
            self.published.image(**_given(image)),
            self.published.video_rules(video_processor)(**_given(video)),
            **{"boxes": self.published.boxes, **settings},
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
        """The constructor for YAML: the prompt template may be a dotted path or a dict of tags per role.

        Args:
            prompt_template: dotted path of a torchtune prompt template, or role -> [text before, text after].
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
        """The transform of a checkpoint folder, with every value from its files.

        Arguments of the constructor replace the folder's values if they are not None.

        Args:
            folder: has config.json, tokenizer and image processor files, as published or as transformers 5
                saves them.
            chat_template: "folder": one of our chat formats must render what the folder's Jinja renders.
                "builtin": do not compare.
            prompt_template: dotted path of a torchtune prompt template, or role -> [text before, text after].

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
                compared = {"probes": TOOL_PROBES, "tools": PROBE_TOOLS}
                values.setdefault("no_tools", _problem(otherwise, chat, *files.template, **compared))
        template = None if prompt_template is None else _get_prompt_template(prompt_template)
        tokenizer = files.tokenizer(cls.published.words)
        try:
            transform = cls(tokenizer=tokenizer, prompt_template=template, **values)
        except ValueError as error:
            given = [name for name, value in overrides.items() if value is not None]
            raise ValueError(
                f"{files.path}{' with your ' * bool(given)}{', '.join(given)}: {error}"
            ) from error
        files.check_token_id("image_token_id", transform.image_token_id)
        files.check_token_id("video_token_id", transform.video_token_id)
        return transform

    @classmethod
    def _matching_chat(cls, template: tuple[str, str], wanted: str | None, thinking: bool | None) -> str:
        """The name of the first chat format that renders what the folder's template renders."""
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
        tokens: Sequence[ExtraToken] = () if merges_file is None else cls.published.added_tokens
        if special_tokens_path is not None:
            tokens = extra_tokens(read_json(special_tokens_path))
        return BPETokenizer(path, merges_file, extra_tokens=tokens, words=cls.published.words)


def _problem(words: str, *checked: Any, **probes: Any) -> str | None:
    try:
        check_template(*checked, **probes)
    except ValueError as error:
        return f"{words}: {error}"
    return None


def _given(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}
