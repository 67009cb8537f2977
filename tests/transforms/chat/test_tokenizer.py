"""Tokens equal transformers' Qwen2Tokenizer with split_special_tokens=True."""

# ruff: noqa: E501 - a list of strings

import itertools
import json
import pickle
import random

import pytest
import tiny
from chats import TEXTS
from transformers import Qwen2Tokenizer

from torchtune_qwenvl.transforms.chat.tokenizer import BPETokenizer, ExtraToken

PIECES = [
    *TEXTS, *tiny.ADDED_TOKENS, "<|im_end|", "|im_end|>", "<|im_end|>>", "<<|im_start|>", "<|IM_END|>", "<|endoftext |>",
    "<|vision_start|><|image_pad|><|vision_end|>", "</tool_call", "Grüße aus Köln", "Ça va ?", "¿Qué tal?", "Zażółć gęślą jaźń",
    "Ελληνικά", "Türkçe İstanbul", "Tiếng Việt", "ქართული", "հայերեն", "বাংলা", "தமிழ்", "ሰላም", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "ﬁﬂ ligatures", "Å Å Å",
    "\u2028line\u2029para", "\x00nul\x07bell", "\v\f\x85", "½ ² ① Ⅷ", "a\t\n b\r\r\n", "0x1F 1_000 1e9", "::-->==>><<", "````python",
]  # fmt: skip


def test_equals_transformers_on_many_strings(published_folder):
    reference = Qwen2Tokenizer.from_pretrained(published_folder, split_special_tokens=True)
    ours = BPETokenizer(
        published_folder / "vocab.json",
        published_folder / "merges.txt",
        extra_tokens=[ExtraToken(name, i < tiny.N_SPECIAL) for i, name in enumerate(tiny.ADDED_TOKENS)],
    )
    strings = many_strings()
    assert len(set(strings)) >= 1000
    for text in strings:
        assert ours.encode(text) == reference(text)["input_ids"], repr(text)
    for text in strings[::7]:
        ids = ours.encode(text)
        for skip in (False, True):
            assert ours.decode(ids, skip) == reference.decode(ids, skip_special_tokens=skip), repr(text)


def many_strings() -> list[str]:
    rng = random.Random(0)
    pairs = ["".join(pair) for pair in itertools.islice(itertools.product(PIECES, PIECES[::5]), 900)]
    mixed = ["".join(rng.choices(PIECES, k=rng.randint(3, 8))) for _ in range(300)]
    points = [
        *range(0x20, 0x500),
        *range(0x3000, 0x30FF),
        *range(0x1F600, 0x1F640),
        0x200D,
        0xFE0F,
        0x0A,
        0x0D,
    ]
    noise = ["".join(chr(rng.choice(points)) for _ in range(rng.randint(1, 60))) for _ in range(300)]
    return [*PIECES, *pairs, *mixed, *noise]


def test_known_ids_and_sizes(published_folder):
    ours = BPETokenizer(
        published_folder / "vocab.json",
        published_folder / "merges.txt",
        extra_tokens=[ExtraToken(name, True) for name in tiny.ADDED_TOKENS],
    )
    assert ours.encode("Hello, how are you?") == [9707, 11, 1246, 525, 498, 30]
    assert ours.encode("What do you see in this image?") == [3838, 653, 498, 1490, 304, 419, 2168, 30]
    assert (ours.base_vocab_size, ours.vocab_size, len(ours.special_tokens)) == (151643, 151665, 22)
    assert (ours.pad_id, ours.eos_id, ours.special_id("<|file_sep|>")) == (151643, 151645, 151664)


@pytest.fixture
def tokenizer(tiny_folder) -> BPETokenizer:
    listed = json.loads((tiny_folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    extra = [ExtraToken(token["content"], token["special"], int(i)) for i, token in listed.items()]
    return BPETokenizer(tiny_folder / "vocab.json", tiny_folder / "merges.txt", extra_tokens=extra)


def test_special_strings_are_text_before_and_after_pickling(tokenizer):
    for one in (tokenizer, pickle.loads(pickle.dumps(tokenizer))):
        assert max(one.encode("<|im_end|><|image_pad|>")) < tiny.TINY_BASE
        assert one.decode(one.encode("<|im_end|>")) == "<|im_end|>"
        # Not marked special in the checkpoint: one id, as in transformers.
        assert one.encode("<tool_call>") == [tiny.token_id("<tool_call>")]


def test_decode_skips_only_special_tokens(tokenizer):
    ids = [tiny.token_id("<|im_start|>"), *tokenizer.encode("the <tool_call>"), tiny.token_id("<|im_end|>")]
    assert tokenizer.decode(ids) == "the <tool_call>"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|im_start|>the <tool_call><|im_end|>"


def test_tokens_of_another_vocabulary_are_refused(tiny_folder):
    files = tiny_folder / "vocab.json", tiny_folder / "merges.txt"
    with pytest.raises(ValueError, match=r"'<\|x\|>' should have id 999, but in this vocabulary it has 274"):
        BPETokenizer(*files, extra_tokens=[ExtraToken("<|x|>", True, 999)])
    with pytest.raises(ValueError, match=r"no added token '<\|im_end\|>'"):
        BPETokenizer(*files, extra_tokens=[ExtraToken("<|endoftext|>", True)])


def test_missing_and_broken_files(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(ValueError, match=r"gone\.json: no such tokenizer file"):
        BPETokenizer(tmp_path / "gone.json")
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a readable tokenizer file"):
        BPETokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match=r"vocab\.json needs its merges\.txt"):
        BPETokenizer(tmp_path / "vocab.json")
