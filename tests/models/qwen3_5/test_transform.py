"""Qwen3.5's transform against its template and processor: tokens, labels, tools, reasoning."""

import json
import shutil

import numpy as np
import pytest
import tiny
from chats import mask_by_search, random_conversation
from faults.campaign import campaign_size
from hybrid.tiny_qwen3_5 import QWEN3_5_TEMPLATE
from record_sets.tool_chats import processed, random_tool_chat, sample_of
from torchtune.data import Message
from transformers import AutoProcessor
from transformers.models.qwen3_5.tokenization_qwen3_5 import PRETOKENIZE_REGEX, Qwen3_5Tokenizer

from torchtune_qwenvl import load_transform
from torchtune_qwenvl.models.qwen3_5 import Qwen3_5Transform
from torchtune_qwenvl.models.qwen3_5._chat import CHAT
from torchtune_qwenvl.models.qwen3_5._transform import WORDS
from torchtune_qwenvl.transforms.chat.rendering import render_all
from torchtune_qwenvl.transforms.chat.template_check import template_variables
from torchtune_qwenvl.transforms.errors import BadSample

IMAGE = {"type": "image", "content": "x.png"}
THOUGHT = "<think>\nHm.\n</think>\n\n"
EMPTY = "<think>\n\n</think>\n\n"
END = tiny.token_id("<|im_end|>", family="qwen3_5")
ADD = {"type": "function", "function": {"name": "add"}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("qwen3_5") / "source"
    path.mkdir()
    tiny.write_processor_files(path, family="qwen3_5")
    (path / "config.json").write_text(json.dumps(tiny.nested_config(tiny.tiny_hf_config(family="qwen3_5"))))
    return path


@pytest.fixture(scope="module")
def processor(folder):
    return AutoProcessor.from_pretrained(folder)


def written(messages, chat=CHAT, **options):
    return chat.write(chat.render(messages, **options))


@pytest.mark.parametrize("switch", [{}, {"enable_thinking": False}], ids=["thinking", "no thinking"])
def test_tokens_and_labels_of_random_conversations_with_tools(folder, processor, switch):
    """Reasoning, calls, results, images; the answer's header is not trained on, all that follows is."""
    transform = load_transform(folder, **switch)
    rng, done, calls = np.random.default_rng(1), 0, 0
    while done < campaign_size(60, 300):
        chat = random_tool_chat(rng)
        if all(chat.masked) or not asks(chat):
            continue
        done, calls = done + 1, calls + any(turn["calls"] for turn in chat.turns)
        sample = sample_of(transform, chat.record(rng))
        assert sample["tokens"] == processed(processor, chat, objects=True, **switch)
        answer, header = (processor.tokenizer(f"<|im_start|>assistant{x}")["input_ids"] for x in ("", "\n"))
        rule = mask_by_search(sample["tokens"], tuple(answer), {END}, len(header), 2, chat.masked)
        assert sample["mask"] == rule
    assert calls > done / 3


def asks(chat):
    texts = [turn["text"].strip() for turn in chat.turns if turn["role"] == "user"]
    return any(not (t.startswith("<tool_response>") and t.endswith("</tool_response>")) for t in texts)


def test_random_conversations_equal_the_template_with_either_switch():
    rng = np.random.default_rng(3)
    quiet = CHAT.with_thinking(False)
    ours, variables = [], []
    for _ in range(campaign_size(250, 1000)):
        messages = random_conversation(rng).messages
        if rng.random() < 0.1:  # a tool result written as text, media in it
            parts = [{"type": "text", "content": text} for text in (" <tool_response>", "</tool_response>\n")]
            order = [0, IMAGE, 1] if rng.random() < 0.5 else [0, 1, IMAGE]
            messages[-1:-1] = [Message("user", [part if part is IMAGE else parts[part] for part in order])]
        for prompt in (False, True):
            shown = messages[: len(messages) - prompt]
            for chat, switch in ((CHAT, {}), (quiet, {"enable_thinking": False})):
                ours.append(written(shown, chat, generation_prompt=prompt))
                variables.append(template_variables(shown, prompt, **switch))
    expected = render_all(QWEN3_5_TEMPLATE, variables)
    assert len(expected) == len(ours) >= 1000
    for text, rendering in zip(ours, expected, strict=True):
        assert rendering.error is None and text == rendering.text


def test_answers_after_the_last_question_carry_a_block_of_reasoning():
    messages = [
        Message("user", "A?"),
        Message("assistant", f"{THOUGHT}1"),
        Message("user", " B? "),
        Message("assistant", "2\n"),
    ]
    assert written(messages) == (
        "<|im_start|>user\nA?<|im_end|>\n<|im_start|>assistant\n1<|im_end|>\n"
        f"<|im_start|>user\nB?<|im_end|>\n<|im_start|>assistant\n{EMPTY}2<|im_end|>\n"
    )
    assert written(messages[:3], generation_prompt=True).endswith("<|im_start|>assistant\n<think>\n")
    quiet = CHAT.with_thinking(False)
    assert written(messages[:3], quiet, generation_prompt=True).endswith(f"assistant\n{EMPTY}")


def test_tools_come_before_the_system_text_and_calls_are_tags():
    call = {"name": "add", "arguments": '{"a": [1, null], "b": true, "c": "x"}'}
    messages = [
        Message("system", "Be brief."),
        Message("user", "?"),
        Message("assistant", [{"type": "text", "content": "So:"}, {"type": "tool_call", "content": call}]),
        Message("ipython", " 3 "),
        Message("assistant", "3."),
    ]
    text = written(messages, tools=[ADD])
    assert text.startswith("<|im_start|>system\n# Tools\n\nYou have access to the following functions:")
    assert "</IMPORTANT>\n\nBe brief.<|im_end|>\n" in text
    assert (
        f"{EMPTY}So:\n\n<tool_call>\n<function=add>\n<parameter=a>\n[1, null]\n</parameter>\n<parameter=b>\n"
        "True\n</parameter>\n<parameter=c>\nx\n</parameter>\n</function>\n</tool_call><|im_end|>\n"
        "<|im_start|>user\n<tool_response>\n3\n</tool_response><|im_end|>\n"
    ) in text


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([Message("user", "x"), Message("system", "y")], "message 1: a system message after the first"),
        ([Message("system", [IMAGE]), Message("user", "x")], "message 0: an image or a video in .* 'system'"),
        ([Message("user", "x"), Message("assistant", [IMAGE])], "message 1: an image or a .* 'assistant'"),
        ([Message("assistant", "x")], "no question of a user"),
        ([Message("user", "<tool_response>x</tool_response>"), Message("assistant", "x")], "no question"),
        ([Message("ipython", "x"), Message("user", "y")], "message 0: a tool's result before any question"),
    ],
)
def test_what_the_template_refuses_or_would_drop_is_refused(messages, message):
    with pytest.raises(BadSample, match=message):
        CHAT.render(messages)


def test_a_folder_with_another_template_is_told(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    template = QWEN3_5_TEMPLATE.replace("<think>", "<thought>")
    (other / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    with pytest.raises(ValueError, match=r"chat_template\.json: on the probe .*chat_template=\"builtin\""):
        load_transform(other)
    assert load_transform(other, chat_template="builtin").chat == CHAT


def test_words_keep_combining_marks_as_the_reference_does(folder, tmp_path):
    """From vocab.json and merges.txt, which do not say how words are split."""
    assert WORDS == PRETOKENIZE_REGEX
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("\n".join(map(" ".join, model["merges"])) + "\n")
    ours = Qwen3_5Transform(
        tmp_path / "vocab.json",
        tmp_path / "merges.txt",
        special_tokens_path=folder / "tokenizer_config.json",
    )
    theirs = Qwen3_5Tokenizer(vocab=model["vocab"], merges=list(map(tuple, model["merges"])))
    for text in ("क्षत्रिय और हिन्दी", "e\u0301te\u0301 the\u0301", "தமிழ் 2024", "in\u0307g"):
        assert ours.encode(text) == theirs(text)["input_ids"]
