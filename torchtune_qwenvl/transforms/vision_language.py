"""A conversation with images and videos to what the model takes: tokens, mask, positions, patches.

Order matters: tokens are counted from the files' headers first, the length policy is applied, and only then
are the images and videos that stay decoded. What differs between families comes in as parts: tokenizer, chat
format, image and video transform.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torchtune.data import Message, PromptTemplateInterface
from torchtune.modules.transforms import Transform
from torchtune.modules.transforms.tokenizers import ModelTokenizer

from torchtune_qwenvl.transforms.chat.chat import ChatFormat, has_media
from torchtune_qwenvl.transforms.chat.positions import mrope_positions, visual_positions
from torchtune_qwenvl.transforms.chat.tokenizer import BPETokenizer
from torchtune_qwenvl.transforms.chat.tools import Tools, calls_of
from torchtune_qwenvl.transforms.chat.truncation import Policy, turns_that_fit
from torchtune_qwenvl.transforms.chat.turns import (
    Medium,
    TurnEncoder,
    TurnTokens,
    join_turns,
    media_numbers,
    visual_blocks,
)
from torchtune_qwenvl.transforms.errors import BadSample, check_trainable
from torchtune_qwenvl.transforms.images.image import ImageTransform
from torchtune_qwenvl.transforms.media import MediaPlanner, PlannedMedium
from torchtune_qwenvl.transforms.size import SampleSize
from torchtune_qwenvl.transforms.videos.video import VideoTransform


class VisionLanguageTransform(ModelTokenizer, Transform):
    """torchtune's ModelTokenizer and Transform in one, for one model family.

    Only an assistant's content, the end-of-turn token and the newline behind it are trained on (the Qwen
    team's rule), and nothing of a message with `masked=True`; `masked=False` on another role changes nothing.

    Args:
        tokenizer, chat, image_transform, video_transform: the parts.
        tokens_per_second: of a clip's temporal positions, see `temporal_positions`.
        no_video: why videos are refused; None: they are taken.
        max_seq_len: longest sample in tokens; None: no limit.
        truncation: what happens to a longer one: "drop_turns" leaves out trailing exchanges with their
            images, "drop" gives the sample up; see `turns_that_fit`.
        prompt_template: torchtune's, applied to the messages first.
        stop_tokens: ids that end generation; default end of turn, padding, `chat.stops`.
        context_length: the model's `max_position_embeddings`; longer samples are warned about.
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
    ) -> None:
        if truncation not in ("drop_turns", "drop"):
            raise ValueError(f'truncation is "drop_turns" or "drop", got {truncation!r}')
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
        self.image_token_id = self._encode_turn.image_token_id
        self.video_token_id = self._encode_turn.video_token_id

    @property
    def base_vocab_size(self) -> int:
        """Number of tokens without the added ones."""
        return self.tokenizer.base_vocab_size

    @property
    def vocab_size(self) -> int:
        """Number of tokens with the added ones; the model's embedding may have spare rows behind them."""
        return self.tokenizer.vocab_size

    def encode(self, text: str, add_bos: bool = False, add_eos: bool = False) -> list[int]:
        """Ids of `text`, in which nothing is special. These models have no BOS token: `add_bos` adds none."""
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
        """Ids of one message as a turn; no default system turn is put in front."""
        turn = self.chat.render([Message("system", ""), message])[1]
        if not tokenize_header:
            turn.header = []
        if not tokenize_end:
            turn.ending = []
        return self._encode_turn(turn, [planned.medium for planned in self._plan([message])]).tokens

    def tokenize_messages(
        self, messages: Sequence[Message], *, add_eos: bool = True, tools: Tools = ()
    ) -> tuple[list[int], list[bool]]:
        """(tokens, mask) of a conversation, cut by the policy; media are counted from their headers.

        Args:
            messages: the conversation.
            add_eos: False leaves the last turn open, without its end.
            tools: see the call.
        """
        turns, _, _ = self._encode_messages(messages, tools, add_eos=add_eos)
        return join_turns(turns)

    def __call__(self, sample: Mapping[str, Any], inference: bool = False) -> dict[str, Any]:
        """`{"messages": [...]}`, or with `"tools": [...]` beside it, to one example of the model's input.

        Image parts hold a path, bytes, PIL image, array or tensor under `content`, and may hold `min_pixels,
        max_pixels, resized_height, resized_width`; for video parts see `VideoTransform.plan`.

        Args:
            sample: has `messages`, and may have `tools`, in OpenAI's form; see `transforms/chat/tools.py`.
            inference: open the assistant's turn behind the last message; an empty assistant message at the
                end, as torchtune's recipes add it, stands for the same. Too long raises: no turn is dropped.

        Returns:
            `tokens` list[int] of length s · `mask` list[bool], True = not trained on · `input_pos` int64
            [s, 3] · `visual` int64 [v], indices of the visual tokens in `tokens` ·
            `encoder_input["vision"]`: `images` list of [n, features], one per image or video in the order of
            the text, `grid_thw` int64 [m, 3] · `dropped_turns` where the policy left some out.

        Raises:
            BadSample: an image, a video or the conversation cannot be used, or nothing is trained on.
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
        blocks = visual_blocks(kept, [one.medium for one in planned])
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
        if dropped:
            result["dropped_turns"] = dropped
        return result

    def size(self, sample: Mapping[str, Any]) -> SampleSize:
        """Tokens and patches that `self(sample)` would have; nothing is decoded, see `SampleSize`.

        Raises:
            BadSample, SampleTooLong: as the call does, where a header or the conversation shows it.
        """
        kept, planned, _ = self._encode_messages(list(sample["messages"]), sample.get("tools") or ())
        return SampleSize(
            tokens=sum(len(turn.tokens) for turn in kept),
            patches=sum(planned[number].n_patches for number in media_numbers(kept)),
        )

    def _encode_messages(
        self, messages: Sequence[Message], tools: Tools, *, inference: bool = False, add_eos: bool = True
    ) -> tuple[list[TurnTokens], list[PlannedMedium], int]:
        """Turns that fit, all images and videos planned, and how many turns were left out."""
        planned = self._plan(messages)
        media = [one.medium for one in planned]
        if self.prompt_template is not None:
            messages = self.prompt_template(list(messages), inference=inference)
        turns = kept = self._encode_turns(messages, tools, media, inference, add_eos)
        policy = "drop" if inference else self.truncation
        while (n := self._n_fitting(kept, policy)) < len(kept):
            # Rendered again: an answer that becomes the last one may now have its reasoning.
            messages = messages[: len(messages) - (len(kept) - n)]
            kept = self._encode_turns(messages, tools, media, inference, add_eos)
        return kept, planned, len(turns) - len(kept)

    def _encode_turns(
        self,
        messages: Sequence[Message],
        tools: Tools,
        media: Sequence[Medium],
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


def _without_open_answer(messages: list[Message]) -> list[Message]:
    if not messages or messages[-1].role != "assistant":
        return messages
    if has_media(messages[-1]) or messages[-1].text_content or calls_of(messages[-1]):
        raise BadSample(
            "the conversation ends with an answer; inference=True opens the next one",
            fix="leave the last assistant message out",
        )
    return messages[:-1]
