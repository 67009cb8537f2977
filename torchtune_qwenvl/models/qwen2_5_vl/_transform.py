"""Qwen2.5-VL's transform: the published tokens, chat format and image settings, and a folder's own instead.

Sources: the published checkpoints' tokenizer_config.json, chat template and preprocessor_config.json.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torchtune.data import PromptTemplateInterface
from torchtune.data._prompt_templates import _get_prompt_template, _TemplateType

from torchtune_qwenvl.transforms.chat import ChatFormat
from torchtune_qwenvl.transforms.decode import MAX_IMAGE_PIXELS
from torchtune_qwenvl.transforms.folder import extra_tokens, read_processor_folder
from torchtune_qwenvl.transforms.image import ImageTransform
from torchtune_qwenvl.transforms.template_check import check_template
from torchtune_qwenvl.transforms.tokenizer import BPETokenizer, ExtraToken
from torchtune_qwenvl.transforms.truncation import Policy
from torchtune_qwenvl.transforms.vision_language import VisionLanguageTransform

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

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)
MIN_PIXELS = 56 * 56
MAX_PIXELS = 28 * 28 * 1280


class Qwen2_5_VLImageTransform(ImageTransform):
    """`ImageTransform` with Qwen2.5-VL's values as defaults: see there."""

    def __init__(
        self,
        *,
        patch_size: int = 14,
        temporal_patch_size: int = 2,
        merge_size: int = 2,
        min_pixels: int = MIN_PIXELS,
        max_pixels: int = MAX_PIXELS,
        image_mean: Sequence[float] = IMAGE_MEAN,
        image_std: Sequence[float] = IMAGE_STD,
        dtype: torch.dtype | str = torch.float32,
        max_image_pixels: int = MAX_IMAGE_PIXELS,
    ) -> None:
        super().__init__(
            patch_size=patch_size,
            temporal_patch_size=temporal_patch_size,
            merge_size=merge_size,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            image_mean=image_mean,
            image_std=image_std,
            dtype=dtype,
            max_image_pixels=max_image_pixels,
        )


class Qwen2_5_VLTransform(VisionLanguageTransform):
    """Tokenizer and transform of Qwen2.5-VL; samples, labels and policies as `VisionLanguageTransform` says.

    Args:
        path: vocab.json or tokenizer.json.
        merges_file: merges.txt beside a vocab.json.
        patch_size, temporal_patch_size, merge_size, min_pixels, max_pixels, image_mean, image_std, dtype,
            max_image_pixels: of `ImageTransform`; None for a pixel limit: the published class default.
        max_seq_len, truncation, prompt_template, stop_tokens: of `VisionLanguageTransform`.
        special_tokens_path: a tokenizer.json or tokenizer_config.json that lists the added tokens; default:
            the published 22 with a vocab.json, the file's own with a tokenizer.json.
        tokenizer: a ready one instead of `path`.
        context_length: of `VisionLanguageTransform`.

    Example:
        >>> transform = Qwen2_5_VLTransform("vocab.json", "merges.txt", max_seq_len=4096, dtype="uint8")
        >>> sample = transform({"messages": [Message("user", [{"type": "image", "content": "cat.jpg"}]),
        ...                                  Message("assistant", "A cat.")]})
    """

    def __init__(
        self,
        path: str | Path | None = None,
        merges_file: str | Path | None = None,
        *,
        patch_size: int = 14,
        temporal_patch_size: int = 2,
        merge_size: int = 2,
        max_seq_len: int | None = None,
        truncation: Policy = "drop_turns",
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        image_mean: Sequence[float] = IMAGE_MEAN,
        image_std: Sequence[float] = IMAGE_STD,
        dtype: torch.dtype | str = torch.float32,
        max_image_pixels: int = MAX_IMAGE_PIXELS,
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
            tokenizer = _tokenizer(path, merges_file, special_tokens_path)
        super().__init__(
            tokenizer,
            CHAT,
            Qwen2_5_VLImageTransform(
                patch_size=patch_size,
                temporal_patch_size=temporal_patch_size,
                merge_size=merge_size,
                min_pixels=MIN_PIXELS if min_pixels is None else min_pixels,
                max_pixels=MAX_PIXELS if max_pixels is None else max_pixels,
                image_mean=image_mean,
                image_std=image_std,
                dtype=dtype,
                max_image_pixels=max_image_pixels,
            ),
            max_seq_len=max_seq_len,
            truncation=truncation,
            prompt_template=prompt_template,
            stop_tokens=stop_tokens,
            context_length=context_length,
        )


def qwen2_5_vl_transform(
    path: str,
    merges_file: str | None = None,
    *,
    prompt_template: _TemplateType | None = None,
    **arguments: Any,
) -> Qwen2_5_VLTransform:
    """`Qwen2_5_VLTransform` for YAML: the prompt template may be a dotted path or a dict of tags per role.

    Args:
        path, merges_file, arguments: see `Qwen2_5_VLTransform`.
        prompt_template: dotted path of a torchtune prompt template, or role -> [text before, text behind].
    """
    template = None if prompt_template is None else _get_prompt_template(prompt_template)
    return Qwen2_5_VLTransform(path, merges_file, prompt_template=template, **arguments)


def load_qwen2_5_vl_transform(
    folder: str | Path,
    *,
    chat_template: str = "folder",
    prompt_template: _TemplateType | None = None,
    **overrides: Any,
) -> Qwen2_5_VLTransform:
    """The transform of a checkpoint folder, every value from its files.

    Args:
        folder: has config.json, tokenizer and image processor files, as published or as transformers 5 saves.
        chat_template: "folder": our rendering must equal the folder's Jinja; "builtin": go on without.
        prompt_template: see `qwen2_5_vl_transform`.
        overrides: arguments of `Qwen2_5_VLTransform` instead of the folder's values.

    Raises:
        ValueError: files are missing or contradict each other, or the chat template differs.
    """
    if chat_template not in ("folder", "builtin"):
        raise ValueError(f'chat_template is "folder" or "builtin", got {chat_template!r}')
    files = read_processor_folder(folder)
    if chat_template == "folder" and files.template is not None:
        check_template(CHAT, *files.template)
    values: dict[str, Any] = {
        **files.image,
        "stop_tokens": files.stop_tokens,
        "context_length": files.context_length,
    }
    values |= {name: value for name, value in overrides.items() if value is not None}
    template = None if prompt_template is None else _get_prompt_template(prompt_template)
    transform = Qwen2_5_VLTransform(tokenizer=files.tokenizer(), prompt_template=template, **values)
    files.check_token_id("image_token_id", transform.image_token_id)
    return transform


def _tokenizer(
    path: str | Path, merges_file: str | Path | None, special_tokens_path: str | Path | None
) -> BPETokenizer:
    if special_tokens_path is not None:
        listed = json.loads(Path(special_tokens_path).read_text(encoding="utf-8"))
        return BPETokenizer(path, merges_file, extra_tokens=extra_tokens(listed))
    return BPETokenizer(path, merges_file, extra_tokens=() if merges_file is None else ADDED_TOKENS)
