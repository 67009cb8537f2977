"""Rendering as pieces, and the check against a folder's own Jinja."""

import pytest
import tiny
from torchtune.data import Message

from torchtune_qwenvl.models.qwen2_5_vl._transform import CHAT
from torchtune_qwenvl.transforms.chat.template_check import check_template
from torchtune_qwenvl.transforms.errors import BadSample

IMAGE = {"type": "image", "content": "x.png"}


def test_a_conversation_as_one_string():
    messages = [
        Message("user", [IMAGE, {"type": "text", "content": "What?"}]),
        Message("assistant", "f(1)", ipython=True),
        Message("ipython", "2"),
    ]
    assert CHAT.write(CHAT.render(messages, generation_prompt=True)) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>What?<|im_end|>\n"
        "<|im_start|>assistant\n<tool_call>\nf(1)\n</tool_call><|im_end|>\n"
        "<|im_start|>tool\n2<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    "messages, message",
    [
        ([], "the conversation is empty"),
        ([Message("user", "x"), Message("critic", "y")], "message 1: unknown role 'critic' .*assistant"),
        ([Message("user", [{"type": "audio", "content": "x"}])], "message 0, part 0: .*got 'audio' with str"),
        ([Message("user", [{"type": "text", "content": None}])], "message 0, part 0: .*NoneType"),
    ],
)
def test_what_cannot_be_rendered(messages, message):
    with pytest.raises(BadSample, match=message):
        CHAT.render(messages)


def test_the_published_template_passes():
    check_template(CHAT, tiny.CHAT_TEMPLATE, "chat_template.json")


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("helpful", "careful", r"'one question' the renderings .* gives '.*careful.*', ours '.*helpful"),
        ("<|image_pad|><|vision_end|>", "<|image_pad|>", "'one exchange'"),
        ("message['role'] + '\\\\n'", "message['role'] | replace('tool', 'user') + '\\\\n'", "'tool answer'"),
        ("part['text'] -", "part['text'] | trim -", "'one exchange'"),
        ("'<|im_start|>assistant\\\\n'", "'<|im_start|>assistant\\\\n<think>'", "'one question'.*<think>"),
    ],
)  # fmt: skip
def test_a_difference_is_named(old, new, message):
    changed = tiny.CHAT_TEMPLATE.replace(old.replace("\\\\", "\\"), new.replace("\\\\", "\\"))
    assert changed != tiny.CHAT_TEMPLATE
    with pytest.raises(
        ValueError, match=rf"(?s)my\.jinja: on the probe {message}.*chat_template=\"builtin\""
    ):
        check_template(CHAT, changed, "my.jinja")


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no system turn') }}",
        "{% for x in",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",  # out of the sandbox
        "{{ messages.append(1) }}",
    ],
)
def test_a_template_that_fails_is_an_error(template):
    with pytest.raises(ValueError, match=r"x\.jinja: this template cannot be rendered on the probe"):
        check_template(CHAT, template, "x.jinja")
