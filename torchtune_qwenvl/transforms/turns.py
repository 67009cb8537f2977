"""Turns as token ids: text through BPE, special tokens by name, a placeholder per visual token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torchtune_qwenvl.transforms.chat import ChatFormat, MediaSlot, Piece, Special, Turn
from torchtune_qwenvl.transforms.positions import VisualBlock
from torchtune_qwenvl.transforms.tokenizer import BPETokenizer

MergedGrid = tuple[int, int]  # rows, columns of visual tokens


@dataclass(frozen=True)
class TurnTokens:
    """Ids of one turn; `mask` True = not trained on; `media`: (index of the first placeholder, image)."""

    role: str
    tokens: list[int]
    mask: list[bool]
    media: list[tuple[int, int]]


class TurnEncoder:
    """Encodes the turns of one chat format with one tokenizer.

    Raises:
        ValueError: the tokenizer lacks one of the format's special tokens.
    """

    def __init__(self, chat: ChatFormat, tokenizer: BPETokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids = {name: tokenizer.special_id(name) for name in chat.special_names}
        self._before, self.image_token_id, self._after = (self._ids[name] for name in chat.image)

    def __call__(self, turn: Turn, grids: Sequence[MergedGrid]) -> TurnTokens:
        """`grids`: of every image of the conversation."""
        tokens, media = self._encode(turn.pieces, grids)
        mask = [True] * len(tokens)
        if turn.trained:
            # Counted, not searched: a newline at the start of an answer merges with the header's into one
            # token, which the Qwen team's rule leaves to the header.
            n_header = len(self._encode(turn.header, grids)[0])
            mask[n_header:] = [False] * (len(tokens) - n_header)
        return TurnTokens(turn.role, tokens, mask, media)

    def _encode(
        self, pieces: Sequence[Piece], grids: Sequence[MergedGrid]
    ) -> tuple[list[int], list[tuple[int, int]]]:
        tokens: list[int] = []
        media: list[tuple[int, int]] = []
        for piece in _merge_text(pieces):
            if isinstance(piece, MediaSlot):
                rows, columns = grids[piece.index]
                media.append((len(tokens) + 1, piece.index))
                tokens += [self._before, *[self.image_token_id] * (rows * columns), self._after]
            elif isinstance(piece, Special):
                tokens.append(self._ids[piece.name])
            else:
                tokens += self._tokenizer.encode(piece)
        return tokens, media


def join_turns(turns: Sequence[TurnTokens]) -> tuple[list[int], list[bool]]:
    """(tokens, mask) of all turns in a row."""
    tokens = [token for turn in turns for token in turn.tokens]
    return tokens, [masked for turn in turns for masked in turn.mask]


def visual_blocks(
    turns: Sequence[TurnTokens], grids: Sequence[MergedGrid]
) -> tuple[list[VisualBlock], list[int]]:
    """The images' blocks in the joined sequence, and which images they are."""
    blocks, images, offset = [], [], 0
    for turn in turns:
        for start, image in turn.media:
            blocks.append(VisualBlock(offset + start, *grids[image]))
            images.append(image)
        offset += len(turn.tokens)
    return blocks, images


def _merge_text(pieces: Sequence[Piece]) -> list[Piece]:
    # The template's text and the user's meet in one string, and BPE merges across the seam.
    merged: list[Piece] = []
    for piece in pieces:
        if merged and isinstance(piece, str) and isinstance(merged[-1], str):
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged
