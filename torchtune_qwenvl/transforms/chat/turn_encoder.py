"""Encode turns as token ids: text by BPE, special tokens by name, one placeholder per visual token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from torchtune_qwenvl.transforms.chat.chat_format import ChatFormat, Turn
from torchtune_qwenvl.transforms.chat.pieces import MediaSlot, Piece, Placeholders, Special
from torchtune_qwenvl.transforms.chat.positions import VisualBlock
from torchtune_qwenvl.transforms.chat.tokenizer import BPETokenizer


@dataclass(frozen=True)
class MediaGrid:
    """The grid of an image or a video, as far as tokens and positions depend on it.

    Args:
        rows, columns: size in merged patches.
        times: position of each temporal patch on the axis t, from the video's start; an image has one, at 0.
        timestamps: seconds of each temporal patch, if the family writes them.
    """

    rows: int
    columns: int
    times: tuple[int, ...] = (0,)
    timestamps: tuple[float, ...] = ()

    def block(self, start: int, patches: range) -> VisualBlock:
        """The block of the temporal patches `patches`, whose first token has index `start`."""
        times = self.times[patches.start : patches.stop]
        return VisualBlock(start, self.rows, self.columns, tuple(time - times[0] for time in times))


@dataclass(frozen=True)
class TurnTokens:
    """One encoded turn.

    Attributes:
        role: torchtune's role.
        tokens: ids.
        mask: True = not trained on.
        weight: of the tokens that are trained on, in the loss.
        media: the runs of placeholders, each with the index of its first token in `tokens`.
    """

    role: str
    tokens: list[int]
    mask: list[bool]
    media: list[tuple[int, Placeholders]]
    weight: float = 1.0


class TurnEncoder:
    """Encodes the turns of one chat format with one tokenizer.

    Raises:
        ValueError: the tokenizer does not have one of the format's special tokens.
    """

    def __init__(self, chat: ChatFormat, tokenizer: BPETokenizer) -> None:
        self._chat, self._tokenizer = chat, tokenizer
        self._ids = {name: tokenizer.special_id(name) for name in chat.special_names}
        self.image_token_id, self.video_token_id = self._ids[chat.image[1]], self._ids[chat.video.marks[1]]

    def __call__(self, turn: Turn, media: Sequence[MediaGrid]) -> TurnTokens:
        """Encode a turn; `media`: the grids of all images and videos of the conversation."""
        tokens, placed = self._encode(turn.pieces, media)
        mask = [True] * len(tokens)
        if turn.trained:
            # The header's tokens are counted, not searched for: a newline at the start of an answer merges
            # with the header's newline into one token, which belongs to the header by the Qwen team's rule.
            n_header = len(self._encode(turn.header, media)[0])
            mask[n_header:] = [False] * (len(tokens) - n_header)
        return TurnTokens(turn.role, tokens, mask, placed, turn.weight)

    def _encode(
        self, pieces: Sequence[Piece], media: Sequence[MediaGrid]
    ) -> tuple[list[int], list[tuple[int, Placeholders]]]:
        tokens: list[int] = []
        placed: list[tuple[int, Placeholders]] = []
        for piece in _merge_text(self._expand(pieces, media)):
            if isinstance(piece, Placeholders):
                grid = media[piece.index]
                placed.append((len(tokens), piece))
                tokens += [self._ids[piece.name]] * (len(piece.patches) * grid.rows * grid.columns)
            elif isinstance(piece, Special):
                tokens.append(self._tokenizer.special_id(piece.name))
            elif isinstance(piece, str):
                tokens += self._tokenizer.encode(piece)
        return tokens, placed

    def _expand(self, pieces: Sequence[Piece], media: Sequence[MediaGrid]) -> list[Piece]:
        expanded: list[Piece] = []
        for piece in pieces:
            if isinstance(piece, MediaSlot):
                grid = media[piece.index]
                expanded += self._chat.expand(piece, len(grid.times), grid.timestamps)
            else:
                expanded.append(piece)
        return expanded


def join_turns(turns: Sequence[TurnTokens]) -> tuple[list[int], list[bool]]:
    """(tokens, mask) of all turns, concatenated."""
    tokens = [token for turn in turns for token in turn.tokens]
    return tokens, [masked for turn in turns for masked in turn.mask]


def token_weights(turns: Sequence[TurnTokens]) -> torch.Tensor | None:
    """The weight of each token in the loss, fp32 [s], 0 where it is not trained on.

    None if all others are 1.
    """
    if all(turn.weight in (0, 1) for turn in turns):
        return None
    weights = [0.0 if masked else turn.weight for turn in turns for masked in turn.mask]
    return torch.tensor(weights, dtype=torch.float32)


def visual_blocks(turns: Sequence[TurnTokens], media: Sequence[MediaGrid]) -> list[VisualBlock]:
    """The blocks of visual tokens in the concatenated sequence."""
    blocks, offset = [], 0
    for turn in turns:
        for start, run in turn.media:
            blocks.append(media[run.index].block(offset + start, run.patches))
        offset += len(turn.tokens)
    return blocks


def media_numbers(turns: Sequence[TurnTokens]) -> list[int]:
    """Numbers of the images and videos that these turns contain, in order."""
    return list(dict.fromkeys(run.index for turn in turns for _, run in turn.media))


def _merge_text(pieces: Sequence[Piece]) -> list[Piece]:
    # The template's text and the user's are encoded as one string: BPE merges across the boundary.
    merged: list[Piece] = []
    for piece in pieces:
        if merged and isinstance(piece, str) and isinstance(merged[-1], str):
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged
