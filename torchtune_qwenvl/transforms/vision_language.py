"""A conversation with images to what the model takes: tokens, mask, positions, patches.

Order matters: tokens are counted from image headers first, the length policy is applied, and only then are
the images that stay decoded. What differs between families comes in as parts: tokenizer, chat format, image
transform.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torchtune.data import Message, PromptTemplateInterface
from torchtune.modules.transforms import Transform
from torchtune.modules.transforms.tokenizers import ModelTokenizer

from torchtune_qwenvl.transforms.chat import ChatFormat, Turn, media_parts
from torchtune_qwenvl.transforms.errors import BadSample
from torchtune_qwenvl.transforms.image import IMAGE_OPTIONS, ImageTransform, PlannedImage
from torchtune_qwenvl.transforms.positions import mrope_positions
from torchtune_qwenvl.transforms.size import SampleSize
from torchtune_qwenvl.transforms.tokenizer import BPETokenizer
from torchtune_qwenvl.transforms.truncation import Policy, turns_that_fit
from torchtune_qwenvl.transforms.turns import TurnEncoder, TurnTokens, join_turns, visual_blocks


class VisionLanguageTransform(ModelTokenizer, Transform):
    """torchtune's ModelTokenizer and Transform in one, for one model family.

    Only an assistant's content, the end-of-turn token and the newline behind it are trained on (the Qwen
    team's rule), and nothing of a message with `masked=True`; `masked=False` on another role changes nothing.

    Args:
        tokenizer, chat, image_transform: the parts.
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
        *,
        max_seq_len: int | None = None,
        truncation: Policy = "drop_turns",
        prompt_template: PromptTemplateInterface | None = None,
        stop_tokens: Sequence[int] | None = None,
        context_length: int | None = None,
    ) -> None:
        if truncation not in ("drop_turns", "drop"):
            raise ValueError(f'truncation is "drop_turns" or "drop", got {truncation!r}')
        self.tokenizer, self.chat, self.image_transform = tokenizer, chat, image_transform
        self.max_seq_len, self.truncation = max_seq_len, truncation
        self.prompt_template = prompt_template
        self.context_length = context_length
        self.special_tokens = tokenizer.special_tokens
        self.eos_id, self.pad_id = tokenizer.eos_id, tokenizer.pad_id
        self.bos_id: int | None = None
        ends = [self.eos_id, self.pad_id, *(tokenizer.special_id(name) for name in chat.stops)]
        self.stop_tokens = ends if stop_tokens is None else list(stop_tokens)
        self._encode_turn = TurnEncoder(chat, tokenizer)
        self.image_token_id = self._encode_turn.image_token_id

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
        return self._encode_turn(turn, self._grids(self._plan([message]))).tokens

    def tokenize_messages(
        self, messages: Sequence[Message], *, add_eos: bool = True
    ) -> tuple[list[int], list[bool]]:
        """(tokens, mask) of a conversation, cut by the policy; images are counted from their headers.

        Args:
            messages: the conversation.
            add_eos: False leaves the last turn open, without its end.
        """
        turns = self._turns(messages)
        if not add_eos:
            turns[-1].ending = []
        grids = self._grids(self._plan(messages))
        return join_turns(self._fit([self._encode_turn(turn, grids) for turn in turns], self.truncation))

    def __call__(self, sample: Mapping[str, Any], inference: bool = False) -> dict[str, Any]:
        """`{"messages": [...]}` to one example of the model's input.

        Image parts hold a path, bytes, PIL image, array or tensor under `content`, and may hold `min_pixels,
        max_pixels, resized_height, resized_width`.

        Args:
            sample: has `messages`.
            inference: open the assistant's turn behind the last message; an empty assistant message at the
                end, as torchtune's recipes add it, stands for the same. Too long raises: no turn is dropped.

        Returns:
            `tokens` list[int] of length s · `mask` list[bool], True = not trained on · `input_pos` int64
            [s, 3] · `encoder_input["vision"]`: `images` list of [n, features], `grid_thw` int64 [images, 3] ·
            `dropped_turns` where the policy left some out.

        Raises:
            BadSample: an image or the conversation cannot be used, or nothing in it is trained on.
            SampleTooLong: see `turns_that_fit`.
        """
        messages = list(sample["messages"])
        if inference:
            messages = _without_open_answer(messages)
        plans = self._plan(messages)
        grids = self._grids(plans)
        rendered = self._turns(messages, generation_prompt=inference)
        turns = [self._encode_turn(turn, grids) for turn in rendered]
        kept = self._fit(turns, "drop" if inference else self.truncation)
        tokens, mask = join_turns(kept)
        if not inference and all(mask):
            raise BadSample(
                "nothing to train on: no assistant turn that is not masked",
                fix="give an answer, or call with inference=True for a prompt",
            )
        self._warn_if_long(len(tokens))
        blocks, numbers = visual_blocks(kept, grids)
        encoded = [self.image_transform.patches(plans[number]) for number in numbers]
        result: dict[str, Any] = {
            "tokens": tokens,
            "mask": mask,
            "input_pos": mrope_positions(len(tokens), blocks),
            "encoder_input": {
                "vision": {
                    "images": [patches for patches, _ in encoded],
                    "grid_thw": torch.tensor([grid for _, grid in encoded], dtype=torch.int64).reshape(-1, 3),
                }
            },
        }
        if len(kept) < len(turns):
            result["dropped_turns"] = len(turns) - len(kept)
        return result

    def size(self, sample: Mapping[str, Any]) -> SampleSize:
        """Tokens and patches that `self(sample)` would have; nothing is decoded, see `SampleSize`.

        Raises:
            BadSample, SampleTooLong: as the call does, where a header or the conversation shows it.
        """
        messages = list(sample["messages"])
        plans = self._plan(messages)
        grids = self._grids(plans)
        kept = self._fit([self._encode_turn(turn, grids) for turn in self._turns(messages)], self.truncation)
        images = [plans[number] for turn in kept for _, number in turn.media]
        return SampleSize(
            tokens=sum(len(turn.tokens) for turn in kept),
            patches=sum(math.prod(self.image_transform.grid(image)) for image in images),
        )

    def _turns(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> list[Turn]:
        if self.prompt_template is not None:
            messages = self.prompt_template(list(messages), inference=generation_prompt)
        turns = self.chat.render(messages, generation_prompt=generation_prompt)
        if not generation_prompt:
            self.chat.end(turns)
        return turns

    def _plan(self, messages: Sequence[Message]) -> list[PlannedImage]:
        plans = []
        for where, part in media_parts(messages):
            options = {name: part[name] for name in IMAGE_OPTIONS if part.get(name) is not None}
            plans.append(self.image_transform.plan(part["content"], where=where, **options))
        return plans

    def _grids(self, plans: Sequence[PlannedImage]) -> list[tuple[int, int]]:
        return [self.image_transform.merged_grid(plan) for plan in plans]

    def _fit(self, turns: list[TurnTokens], policy: Policy) -> list[TurnTokens]:
        roles, lengths = [turn.role for turn in turns], [len(turn.tokens) for turn in turns]
        return turns[: turns_that_fit(roles, lengths, self.max_seq_len, policy)]

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
    if messages[-1].contains_media or messages[-1].text_content:
        raise BadSample(
            "the conversation ends with an answer; inference=True opens the next one",
            fix="leave the last assistant message out",
        )
    return messages[:-1]
