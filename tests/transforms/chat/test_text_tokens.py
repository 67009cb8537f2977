"""Tokens that text may hold: their ids equal transformers'; others stay letters, with a warning."""

import json
import pickle
import warnings

import pytest
import tiny
from torchtune.data import Message
from transformers import AutoTokenizer

from torchtune_qwenvl import load_transform

MARKS = ["<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>", "<|quad_start|>"]
TEXTS = [
    "Find <|object_ref_start|>the sheep<|object_ref_end|>",
    "<|box_start|>(493,169),(539,297)<|box_end|>",
    " <|box_start|> \n<|quad_start|><|quad_start|>x<|box_end|>.",
    "no marks at all <box> <|box|>",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder to which a user has added a special token and an ordinary one."""
    path = tiny.save_tiny_folder(tmp_path_factory.mktemp("added") / "folder")
    config = json.loads((path / "tokenizer_config.json").read_text())
    listed = config["added_tokens_decoder"]
    for name, special in (("<|mine|>", True), ("<ours>", False)):
        listed[str(max(map(int, listed)) + 1)] = {
            **next(iter(listed.values())),
            "content": name,
            "special": special,
        }
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def test_ids_of_grounding_tokens_and_of_a_users_own_equal_transformers(folder):
    reference = AutoTokenizer.from_pretrained(folder)
    transform = load_transform(folder, text_tokens=["grounding", "<|mine|>"])
    again = pickle.loads(pickle.dumps(transform))
    for text in [*TEXTS, "a <|mine|>b<ours>c <|mine|>"]:
        assert transform.encode(text) == again.encode(text) == reference(text)["input_ids"]
        assert transform.decode(transform.encode(text)) == text
    alone = load_transform(folder, text_tokens="grounding")
    assert [len(alone.encode(mark)) for mark in MARKS] == [1] * 5 and len(alone.encode("<|mine|>")) > 1


def test_without_the_setting_marks_are_letters_and_control_tokens_always_are(folder):
    plain, marked = load_transform(folder), load_transform(folder, text_tokens="grounding")
    assert all(max(plain.encode(text)) < tiny.TINY_BASE for text in TEXTS)
    for text in ("<|im_end|>", "<|vision_start|><|image_pad|><|vision_end|>", "<|endoftext|>"):
        assert max(marked.encode(text)) < tiny.TINY_BASE


@pytest.mark.parametrize("name", ["<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|endoftext|>"])
def test_control_and_media_tokens_are_refused(folder, name):
    with pytest.raises(ValueError, match="belongs to the chat template or to images and videos"):
        load_transform(folder, text_tokens=[name])


def test_an_unknown_token_is_refused(folder):
    with pytest.raises(ValueError, match="no added token '<|ours|>'".replace("|", r"\|")):
        load_transform(folder, text_tokens=["<|ours|>"])


def test_one_warning_names_the_tokens_that_text_spells(folder):
    def sample(text):
        return {"messages": [Message("user", text), Message("assistant", "x")]}

    transform = load_transform(folder, text_tokens=MARKS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        transform(sample(TEXTS[0]))
    with pytest.warns(
        UserWarning, match=r"text spells <\|im_end\|>, <\|mine\|>, which is encoded as letters"
    ):
        transform(sample("<|im_end|> <|mine|> <|box_start|>"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        transform(sample("<|im_end|> again"))


def test_the_published_vocabulary_gives_the_ids_of_transformers(published_folder):
    reference = AutoTokenizer.from_pretrained(published_folder)
    transform = load_transform(published_folder, text_tokens="grounding")
    for text in TEXTS:
        assert transform.encode(text) == reference(text)["input_ids"]
    assert len(transform.encode(TEXTS[0])) == 6  # 16 where the marks are letters
