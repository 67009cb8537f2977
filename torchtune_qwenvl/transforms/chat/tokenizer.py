"""The byte-level BPE tokenizer of the Qwen models, using the `tokenizers` library.

`encode` returns no special token, whatever the text contains, like transformers with
`split_special_tokens=True`; those named by `with_text_tokens` are the exception. Added tokens that the
checkpoint does not mark as special, such as `<tool_call>`, are still encoded as one id, as in transformers.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

# How Qwen2 and its successors split text into words before BPE. tokenizer.json contains this pattern,
# vocab.json and merges.txt do not.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class ExtraToken(NamedTuple):
    """A token added after the base vocabulary. `token_id` None means the next free id."""

    content: str
    special: bool
    token_id: int | None = None


class BPETokenizer:
    """Text to ids and back.

    Args:
        path: `tokenizer.json`, or `vocab.json` together with `merges_file`.
        merges_file: `merges.txt`; None with a `tokenizer.json`.
        extra_tokens: tokens added after the base vocabulary; if `path` already has one, its id is checked.
        eos_token, pad_token: must be added tokens.
        words: how text is split into words before BPE, if `path` is a vocab.json.

    Raises:
        ValueError: a file is missing or unreadable, an added token has an unexpected id, or `eos_token` or
            `pad_token` is unknown.
    """

    def __init__(
        self,
        path: str | Path,
        merges_file: str | Path | None = None,
        *,
        extra_tokens: Iterable[ExtraToken] = (),
        eos_token: str = "<|im_end|>",
        pad_token: str = "<|endoftext|>",
        words: str = WORDS,
    ) -> None:
        merges = None if merges_file is None else Path(merges_file)
        self._tokenizer = _read_tokenizer(Path(path), merges, words)
        self._tokenizer.encode_special_tokens = True
        _add_tokens(self._tokenizer, extra_tokens, Path(path))
        added = self._tokenizer.get_added_tokens_decoder()
        self.special_tokens: dict[str, int] = {token.content: i for i, token in sorted(added.items())}
        # Added tokens that `encode` splits into letters.
        self.split_tokens: frozenset[str] = frozenset(t.content for t in added.values() if t.special)
        self.base_vocab_size: int = self._tokenizer.get_vocab_size(with_added_tokens=False)
        self.vocab_size: int = self._tokenizer.get_vocab_size()
        self.eos_id = self.special_id(eos_token)
        self.pad_id = self.special_id(pad_token)

    def special_id(self, name: str) -> int:
        """Id of the added token `name`; ValueError if there is no such token."""
        if name not in self.special_tokens:
            known = " ".join(self.special_tokens) or "none"
            raise ValueError(f"the tokenizer has no added token {name!r}; its added tokens: {known}")
        return self.special_tokens[name]

    def with_text_tokens(self, names: Iterable[str]) -> BPETokenizer:
        """A copy that encodes these added tokens in text as their single ids, and keeps them in decoded text.

        Raises:
            ValueError: one of them is no added token.
        """
        allowed = frozenset(names)
        for name in allowed:
            self.special_id(name)
        if not allowed & self.split_tokens:
            return self
        # The library fixes a token's flags when it is added, so they are changed in its JSON.
        state = json.loads(self._tokenizer.to_str())
        for token in state["added_tokens"]:
            token["special"] = token["special"] and token["content"] not in allowed
        changed = copy.copy(self)
        changed._tokenizer = Tokenizer.from_str(json.dumps(state))
        changed._tokenizer.encode_special_tokens = True
        changed.split_tokens = self.split_tokens - allowed
        return changed

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; special tokens in it are encoded as ordinary text, see `with_text_tokens`."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of `token_ids` (list or 1-D tensor); bytes that are not valid UTF-8 become U+FFFD."""
        return self._tokenizer.decode([int(i) for i in token_ids], skip_special_tokens=skip_special_tokens)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # `tokenizers` loses this flag in pickling, which happens for every spawned worker.
        self._tokenizer.encode_special_tokens = True


def _read_tokenizer(path: Path, merges_file: Path | None, words: str) -> Tokenizer:
    for file in (path, merges_file):
        if file is not None and not file.is_file():
            raise ValueError(
                f"{file}: no such tokenizer file; give tokenizer.json or vocab.json with merges.txt"
            )
    if merges_file is None and path.name == "vocab.json":
        raise ValueError(f"{path}: vocab.json needs its merges.txt as merges_file")
    try:
        if merges_file is None:
            return Tokenizer.from_file(str(path))
        model = BPE.from_file(str(path), str(merges_file))
    except BaseException as error:  # `tokenizers` raises bare Exceptions, and panics that are none
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise ValueError(f"{path}: not a readable tokenizer file: {error}") from error
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _add_tokens(tokenizer: Tokenizer, tokens: Iterable[ExtraToken], path: Path) -> None:
    # One call per token: the library assigns ids in the order of the calls.
    present = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for token in tokens:
        if token.content not in present:
            tokenizer.add_tokens([AddedToken(token.content, special=token.special, normalized=False)])
        came = tokenizer.token_to_id(token.content)
        if token.token_id is not None and came != token.token_id:
            raise ValueError(
                f"{path}: added token {token.content!r} should have id {token.token_id}, but in this "
                f"vocabulary it has {came}; vocabulary and tokenizer_config.json do not belong together"
            )
