"""Turn a conversation with images and videos into the model's input: tokens, mask, positions, patches.

Tokens are counted from the files' headers first, then the length policy is applied, and only the images and
videos that remain are decoded. Families differ in the parts they pass in: tokenizer, chat format, image and
video transform.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torchtune.data import Message, PromptTemplateInterface
from torchtune.modules.transforms import Transform
from torchtune.modules.transforms.tokenizers import ModelTokenizer

from torchtune_qwenvl.transforms.boxes.convention import BoxConvention
from torchtune_qwenvl.transforms.boxes.places import ImageSize, Place
from torchtune_qwenvl.transforms.boxes.reading import read_places
from torchtune_qwenvl.transforms.boxes.writing import BoxWriter, has_boxes
from torchtune_qwenvl.transforms.chat.chat_format import ChatFormat, has_media
from torchtune_qwenvl.transforms.chat.positions import mrope_positions, visual_positions
from torchtune_qwenvl.transforms.chat.text_tokens import SpelledTokens
from torchtune_qwenvl.transforms.chat.tokenizer import BPETokenizer
from torchtune_qwenvl.transforms.chat.tools import Tools, calls_of
from torchtune_qwenvl.transforms.chat.truncation import Policy, turns_that_fit
from torchtune_qwenvl.transforms.chat.turn_encoder import (
    MediaGrid,
    TurnEncoder,
    TurnTokens,
    join_turns,
    media_numbers,
    token_weights,
    visual_blocks,
)
from torchtune_qwenvl.transforms.chat.weights import with_weights
from torchtune_qwenvl.transforms.errors import BadSample, check_trainable
from torchtune_qwenvl.transforms.images.image_transform import ImageTransform
from torchtune_qwenvl.transforms.media_planner import MediaPlanner, PlannedMedia
from torchtune_qwenvl.transforms.size import SampleSize
from torchtune_qwenvl.transforms.videos.video_transform import VideoTransform


class VisionLanguageTransform(ModelTokenizer, Transform):
    """A torchtune ModelTokenizer and Transform for one model family.

    Trained on are an assistant's content, the end-of-turn token and the newline after it (the Qwen team's
    rule). A message with `masked=True` is not trained on; `masked=False` has no effect on other roles. The
    tokens of a `WeightedMessage` count with its weight.

    Args:
        tokenizer, chat, image_transform, video_transform: the parts.
        tokens_per_second: temporal positions per second of a video, see `temporal_positions`.
        no_video: why videos are refused; None: they are accepted.
        max_seq_len: longest sample in tokens; None: no limit.
        truncation: how longer samples are handled: "drop_turns" drops trailing exchanges with their images,
            "drop" drops the sample; see `turns_that_fit`.
        prompt_template: torchtune's, applied to the messages first.
        stop_tokens: ids that end generation; default: end of turn, padding and `chat.stops`.
        context_length: the model's `max_position_embeddings`; longer samples cause a warning.
        boxes: how boxes and points of records are written; None: they are refused.
    """

    def __init__(
        self,
        tokenizer: BPETokenizer,
        chat: ChatFormat,
        image_transform: ImageTransform,
        video_transform: VideoTransform,
        *,
        tokens_per_second: float | None = None,
        no_video: str | None = None,
        max_seq_len: int | None = None,
        truncation: Policy = "drop_turns",
        prompt_template: PromptTemplateInterface | None = None,
        stop_tokens: Sequence[int] | None = None,
        context_length: int | None = None,
        boxes: BoxConvention | None = None,
    ) -> None:
        if truncation not in ("drop_turns", "drop"):
            raise ValueError(f'expected truncation to be "drop_turns" or "drop", got {truncation!r}')
        self.tokenizer, self.chat = tokenizer, chat
        self.image_transform, self.video_transform = image_transform, video_transform
        self.max_seq_len, self.truncation = max_seq_len, truncation
        self.prompt_template = prompt_template
        self.context_length = context_length
        self.special_tokens = tokenizer.special_tokens
        self.eos_id, self.pad_id = tokenizer.eos_id, tokenizer.pad_id
        self.bos_id: int | None = None
        ends = [self.eos_id, self.pad_id, *(tokenizer.special_id(name) for name in chat.stops)]
        self.stop_tokens = ends if stop_tokens is None else list(stop_tokens)
        self._plan = MediaPlanner(image_transform, video_transform, chat.video, tokens_per_second, no_video)
        self._encode_turn = TurnEncoder(chat, tokenizer)
        self.write_boxes = BoxWriter(boxes)
        self.spelled = SpelledTokens(tokenizer)
        self.image_token_id = self._encode_turn.image_token_id
        self.video_token_id = self._encode_turn.video_token_id

    @property
    def base_vocab_size(self) -> int:
        """Number of tokens without the added ones."""
        return self.tokenizer.base_vocab_size

    @property
    def vocab_size(self) -> int:
        """Number of tokens with the added ones; the model's embedding may have more rows."""
        return self.tokenizer.vocab_size

    def encode(self, text: str, add_bos: bool = False, add_eos: bool = False) -> list[int]:
        """Ids of `text`; special tokens in it stay text. `add_bos` has no effect: there is no BOS token."""
        return self.tokenizer.encode(text) + ([self.eos_id] if add_eos else [])

    def decode(
        self, token_ids: Sequence[int], truncate_at_eos: bool = True, skip_special_tokens: bool = True
    ) -> str:
        """Text of `token_ids`, by default up to the first end of turn."""
        ids = [int(i) for i in token_ids]
        if truncate_at_eos and self.eos_id in ids:
            ids = ids[: ids.index(self.eos_id)]
        return self.tokenizer.decode(ids, skip_special_tokens)

    def tokenize_message(
        self, message: Message, tokenize_header: bool = True, tokenize_end: bool = True
    ) -> list[int]:
        """Ids of one message as a turn, without the default system turn."""
        planned = self._plan([message])
        (message,), _ = self._write_boxes([message], planned)
        turn = self.chat.render([Message("system", ""), message])[1]
        if not tokenize_header:
            turn.header = []
        if not tokenize_end:
            turn.ending = []
        return self._encode_turn(turn, [one.grid for one in planned]).tokens

    def tokenize_messages(
        self, messages: Sequence[Message], *, add_eos: bool = True, tools: Tools = ()
    ) -> tuple[list[int], list[bool]]:
        """(tokens, mask) of a conversation, truncated by the policy; media are counted from their headers.

        Args:
            messages: the conversation.
            add_eos: False leaves the last turn open.
            tools: see `__call__`.
        """
        turns, _, _ = self._encode_messages(messages, tools, add_eos=add_eos)
        return join_turns(turns)

    def __call__(self, sample: Mapping[str, Any], inference: bool = False) -> dict[str, Any]:
        """Turn `{"messages": [...]}`, optionally with `"tools": [...]`, into one example for the model.

        An image part has a path, bytes, PIL image, array or tensor under `content`. It may also have
        `min_pixels, max_pixels, resized_height, resized_width`. For video parts see `VideoTransform.plan`.

        Args:
            sample: has `messages`, and may have `tools`, in OpenAI's form; see `transforms/chat/tools.py`.
            inference: open the assistant's turn after the last message. An empty assistant message at the
            end,
                as torchtune's recipes add it, is ignored. No turn is dropped: too long a prompt is an error.

        Returns:
            `tokens` list[int] of length s · `mask` list[bool], True = not trained on · `input_pos` int64
            [s, 3] · `visual` int64 [v], indices of the visual tokens in `tokens` ·
            `encoder_input["vision"]`: `images` list of [n, features], one per image or video in the
            order of the text, `grid_thw` int64 [m, 3] · `dropped_turns`, if the policy dropped any ·
            `boxes`, if there are any: a `Place` of each in pixels of its resized image, whose number is that
            in `images`.
            `weights` fp32 [s], of each token in the loss, if an answer has a weight other than 0 and 1.

        Raises:
            BadSample: an image, a video or the conversation cannot be used, or there is nothing to train on.
            SampleTooLong: see `turns_that_fit`.
        """
        messages = list(sample["messages"])
        if inference:
            messages = _without_open_answer(messages)
        kept, planned, dropped = self._encode_messages(
            messages, sample.get("tools") or (), inference=inference
        )
        tokens, mask = join_turns(kept)
        if not inference:
            check_trainable(mask, fix="give an answer, or call with inference=True for a prompt")
        self._warn_if_long(len(tokens))
        self.spelled.warn(messages)
        blocks = visual_blocks(kept, [one.grid for one in planned])
        encoded = [planned[number].patches() for number in media_numbers(kept)]
        result: dict[str, Any] = {
            "tokens": tokens,
            "mask": mask,
            "input_pos": mrope_positions(len(tokens), blocks),
            "visual": visual_positions(blocks),
            "encoder_input": {
                "vision": {
                    "images": [patches for patches, _ in encoded],
                    "grid_thw": torch.tensor([grid for _, grid in encoded], dtype=torch.int64).reshape(-1, 3),
                }
            },
        }
        if (weights := token_weights(kept)) is not None:
            result["weights"] = weights
        if dropped:
            result["dropped_turns"] = dropped
        if has_boxes(messages):
            _, places = self._write_boxes(messages[: len(messages) - dropped], planned)
            result["boxes"] = _in_resized_images(places, planned)
        return result

    def read_boxes(self, text: str, image: Any, **options: Any) -> list[Place]:
        """The boxes and points in a generated answer, in pixels of the original image.

        Args:
            text: the answer, in the family's convention; special tokens may be left out.
            image: the image that they belong to, see `ImageTransform.plan`.
            **options: the limits that the image had in the prompt, `max_pixels` and the like.

        Raises:
            ValueError: the family has no convention for boxes.
        """
        if self.write_boxes.convention is None:
            raise ValueError("read_boxes: this model's family has no convention for boxes")
        size = ImageSize.of(self.image_transform.plan(image, **options))
        return read_places(text, self.write_boxes.convention, size)

    def size(self, sample: Mapping[str, Any]) -> SampleSize:
        """Tokens and patches that `self(sample)` would have; nothing is decoded. See `SampleSize`.

        Raises:
            BadSample, SampleTooLong: as `__call__`, if headers or the conversation show the problem.
        """
        kept, planned, _ = self._encode_messages(list(sample["messages"]), sample.get("tools") or ())
        return SampleSize(
            tokens=sum(len(turn.tokens) for turn in kept),
            patches=sum(planned[number].n_patches for number in media_numbers(kept)),
        )

    def _encode_messages(
        self, messages: Sequence[Message], tools: Tools, *, inference: bool = False, add_eos: bool = True
    ) -> tuple[list[TurnTokens], list[PlannedMedia], int]:
        """The turns that fit, all planned images and videos, and the number of dropped turns."""
        planned = self._plan(messages)
        media = [one.grid for one in planned]
        messages, _ = self._write_boxes(messages, planned)
        if self.prompt_template is not None:
            made = self.prompt_template(list(messages), inference=inference)
            messages = with_weights(made, messages)
        turns = kept = self._encode_turns(messages, tools, media, inference, add_eos)
        policy = "drop" if inference else self.truncation
        while (n := self._n_fitting(kept, policy)) < len(kept):
            # Rendered again: some templates write reasoning in the last answer only, which is now another
            # one.
            messages = messages[: len(messages) - (len(kept) - n)]
            kept = self._encode_turns(messages, tools, media, inference, add_eos)
        return kept, planned, len(turns) - len(kept)

    def _write_boxes(
        self, messages: Sequence[Message], planned: Sequence[PlannedMedia]
    ) -> tuple[Sequence[Message], list[Place]]:
        """The messages with boxes as text, and the boxes in pixels of the original images."""
        return self.write_boxes(messages, _image_sizes(planned)) if has_boxes(messages) else (messages, [])

    def _encode_turns(
        self,
        messages: Sequence[Message],
        tools: Tools,
        media: Sequence[MediaGrid],
        inference: bool,
        add_eos: bool,
    ) -> list[TurnTokens]:
        turns = self.chat.render(messages, generation_prompt=inference, tools=tools)
        if not inference:
            self.chat.end(turns)
        if not add_eos:
            turns[-1].ending = []
        return [self._encode_turn(turn, media) for turn in turns]

    def _n_fitting(self, turns: Sequence[TurnTokens], policy: Policy) -> int:
        roles, lengths = [turn.role for turn in turns], [len(turn.tokens) for turn in turns]
        return turns_that_fit(roles, lengths, self.max_seq_len, policy)

    def _warn_if_long(self, n_tokens: int) -> None:
        if self.context_length is not None and n_tokens > self.context_length:
            warnings.warn(
                f"a sample has {n_tokens} tokens, the model's max_position_embeddings is "
                f"{self.context_length}; set max_seq_len",
                stacklevel=3,
            )


def _image_sizes(planned: Sequence[PlannedMedia]) -> list[ImageSize]:
    return [ImageSize.of(one.plan) for one in planned if isinstance(one.transform, ImageTransform)]


def _in_resized_images(places: Sequence[Place], planned: Sequence[PlannedMedia]) -> list[Place]:
    """Places in pixels of the resized images, which are numbered together with videos."""
    sizes = _image_sizes(planned)
    numbers = [i for i, one in enumerate(planned) if isinstance(one.transform, ImageTransform)]
    return [replace(p.resized(sizes[p.image]), image=numbers[p.image]) for p in places]


def _without_open_answer(messages: list[Message]) -> list[Message]:
    if not messages or messages[-1].role != "assistant":
        return messages
    last = messages[-1]
    if has_media(last) or has_boxes([last]) or last.text_content or calls_of(last):
        raise BadSample(
            "the conversation ends with an answer; inference=True opens the next one",
            fix="leave the last assistant message out",
        )
    return messages[:-1]
