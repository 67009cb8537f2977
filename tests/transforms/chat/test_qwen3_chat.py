"""Qwen3-VL's chat formats: tool results, reasoning, and what they have no place for."""

import json
import shutil

import numpy as np
import pytest
import tiny
from chats import random_conversation
from torchtune.data import Message

from torchtune_qwenvl import load_transform
from torchtune_qwenvl.models.qwen3_vl._chat import INSTRUCT, THINKING
from torchtune_qwenvl.transforms.chat.render_program import render
from torchtune_qwenvl.transforms.chat.template_check import check_template, template_variables
from torchtune_qwenvl.transforms.errors import BadSample

IMAGE = {"type": "image", "content": "x.png"}
THOUGHT = "<think>\nHm.\n</think>\n\n"


def written(chat, messages, **options):
    return chat.write(chat.render(messages, **options))


def test_tool_results_share_a_turn_of_the_user_and_are_not_trained_on():
    messages = [
        Message("user", "6 * 7?"),
        Message("assistant", "f(1)", ipython=True),
        Message("ipython", "42"),
        Message("ipython", [IMAGE]),
        Message("assistant", "42."),
    ]
    assert written(INSTRUCT, messages) == (
        "<|im_start|>user\n6 * 7?<|im_end|>\n"
        "<|im_start|>assistant\n<tool_call>\nf(1)\n</tool_call><|im_end|>\n"
        "<|im_start|>user\n<tool_response>\n42\n</tool_response>\n<tool_response>\n"
        "<|vision_start|><|image_pad|><|vision_end|>\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n42.<|im_end|>\n"
    )
    assert [turn.trained for turn in INSTRUCT.render(messages)] == [False, True, False, False, True]


def test_only_the_last_answer_keeps_its_reasoning():
    messages = [
        Message("user", "A?"),
        Message("assistant", f"{THOUGHT}1"),
        Message("user", "B?"),
        Message("assistant", f"{THOUGHT}2"),
    ]
    assert (
        f"assistant\n1<|im_end|>\n<|im_start|>user\nB?<|im_end|>\n<|im_start|>assistant\n{THOUGHT}2<"
        in written(THINKING, messages)
    )
    assert written(INSTRUCT, messages).count(THOUGHT) == 2
    messages[-1] = Message("assistant", "2")
    assert written(THINKING, messages).endswith("assistant\n<think>\n\n</think>\n\n2<|im_end|>\n")
    assert written(THINKING, messages[:3], generation_prompt=True).endswith(
        "<|im_start|>assistant\n<think>\n"
    )


def test_random_conversations_equal_the_thinking_template():
    rng = np.random.default_rng(3)
    for _ in range(600):
        messages = random_conversation(rng).messages
        if rng.random() < 0.1:  # a tool result written as text, media in it
            parts = [{"type": "text", "content": text} for text in ("<tool_response>", "</tool_response>")]
            order = [0, IMAGE, 1] if rng.random() < 0.5 else [0, 1, IMAGE]
            messages[-1:-1] = [Message("user", [part if part is IMAGE else parts[part] for part in order])]
        for prompt in (False, True):
            shown = messages[: len(messages) - prompt]
            expected = render(tiny.QWEN3_THINKING_TEMPLATE, template_variables(shown, prompt))["text"]
            assert written(THINKING, shown, generation_prompt=prompt) == expected


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([Message("user", "x"), Message("system", "y")], "message 1: a system message after the first"),
        ([Message("system", [IMAGE]), Message("user", "x")], "message 0: an image or a video in .* 'system'"),
        ([Message("user", "x"), Message("assistant", [IMAGE])], "message 1: an image or a .* 'assistant'"),
    ],
)
def test_what_the_template_would_drop_is_refused(messages, message):
    for chat in (INSTRUCT, THINKING):
        with pytest.raises(BadSample, match=message):
            chat.render(messages)


def test_the_published_instruct_template_passes():
    published = tiny.shared_data() / "published" / "qwen3_vl" / "chat_template.jinja"
    check_template(INSTRUCT, published.read_text(), "chat_template.jinja")
    with pytest.raises(ValueError, match="on the probe"):
        check_template(THINKING, published.read_text(), "chat_template.jinja")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save_tiny_folder(tmp_path_factory.mktemp("qwen3") / "instruct", family="qwen3_vl")


def test_a_folder_gets_the_format_of_its_template(folder, tmp_path):
    thinking = shutil.copytree(folder, tmp_path / "thinking")
    template = {"chat_template": tiny.QWEN3_THINKING_TEMPLATE}
    (thinking / "chat_template.json").write_text(json.dumps(template))
    assert load_transform(folder).chat is INSTRUCT and load_transform(thinking).chat is THINKING
    with pytest.raises(ValueError, match="on the probe"):
        load_transform(folder, chat="thinking")
    assert load_transform(folder, chat="thinking", chat_template="builtin").chat is THINKING
    with pytest.raises(ValueError, match="chat: this family has instruct, thinking, got 'base'"):
        load_transform(folder, chat="base", chat_template="builtin")
    (thinking / "chat_template.json").write_text(json.dumps({"chat_template": "{{ messages[0].role }}"}))
    with pytest.raises(ValueError, match=r"as instruct: .*as thinking: "):
        load_transform(thinking)


def test_reasoning_marks_are_one_token_each_and_trained_on(folder):
    transform = load_transform(folder, chat="thinking", chat_template="builtin")
    sample = transform({"messages": [Message("user", "A?"), Message("assistant", f"{THOUGHT}1")]})
    marks = [transform.special_tokens[name] for name in ("<think>", "</think>")]
    trained = [t for t, masked in zip(sample["tokens"], sample["mask"], strict=True) if not masked]
    assert trained[0] == marks[0] and trained.count(marks[1]) == 1
    assert transform.decode(trained) == f"{THOUGHT}1"
