"""GLM's chat formats: the switch for thinking, tool results with pictures, what a template does not know."""

import json
import shutil

import numpy as np
import pytest
import tiny
from tiny_glm4v import GLM_REASONING_TEMPLATE
from torchtune.data import Message

from torchtune_qwenvl import load_transform
from torchtune_qwenvl.models.glm4v_moe import GLM4VMoeTransform
from torchtune_qwenvl.transforms.errors import BadSample


@pytest.mark.parametrize(
    "parts", [["Why?/nothink"], ["/nothink", "/noth", "ink"], ["/nothink "], ["Why? /nothink/nothink"]]
)
def test_a_question_that_asks_for_it_itself_is_not_asked_twice(parts, folder, transform, processor, switch):
    content = [{"type": "text", "content": part} for part in parts]
    prompt = transform({"messages": [Message("user", content)]}, inference=True)["tokens"]
    plain = [{"role": "user", "content": [{"type": "text", "text": part} for part in parts]}]
    text = processor.apply_chat_template(plain, tokenize=False, add_generation_prompt=True, **switch)
    assert transform.decode(prompt, truncate_at_eos=False, skip_special_tokens=False) == text
    # What a user wrote stays text, except for the one token that means `enable_thinking=False`.
    assert prompt.count(tiny.token_id("/nothink", family="glm4v")) == len(switch)


def test_the_switch_belongs_to_templates_that_have_it(folder, tmp_path):
    if folder.name == "glm4.1v":
        with pytest.raises(ValueError, match="enable_thinking=False: this model's chat template has no such"):
            load_transform(folder, enable_thinking=False, chat="glm4.1v")
        with pytest.raises(ValueError, match=r"as glm4.1v: enable_thinking=False.*; as glm4.6v: "):
            load_transform(folder, enable_thinking=False)
        return
    assert load_transform(folder, enable_thinking=True).chat == load_transform(folder).chat
    other = shutil.copytree(folder, tmp_path / "other")
    silent = GLM_REASONING_TEMPLATE.replace("'/nothink'", "'/silent'")
    (other / "chat_template.json").write_text(json.dumps({"chat_template": silent}))
    load_transform(other)
    with pytest.raises(ValueError, match="/silent"):
        load_transform(other, enable_thinking=False)


def test_what_the_template_does_not_know_is_refused(transform, folder):
    picture = {"type": "image", "content": np.zeros((30, 30, 3), np.uint8)}
    question, answer = Message("user", "Hi"), Message("assistant", "Hello")
    with pytest.raises(BadSample, match="message 1: an image or a video in a message of role 'assistant'"):
        transform({"messages": [question, Message("assistant", [picture])]})
    tools = [question, answer, Message("ipython", [picture]), answer]
    if folder.name == "glm4.1v":
        with pytest.raises(BadSample, match="unknown role 'ipython'"):
            transform({"messages": [question, answer, Message("ipython", "42"), answer]})
        with pytest.raises(BadSample, match="knows no tools"):
            transform({"messages": [question, Message("assistant", "f()", ipython=True)]})
    else:
        assert tiny.token_id("<|observation|>", family="glm4v") in transform({"messages": tools})["tokens"]


def test_pictures_in_tool_results_came_with_glm_4_6v():
    picture = {"type": "image", "content": "cat.png"}
    messages = [Message("user", "Hi"), Message("assistant", "Look"), Message("ipython", [picture])]
    chats = GLM4VMoeTransform.published.chats
    assert "<tool_response>\n<|begin_of_image|>" in chats["glm4.6v"].write(chats["glm4.6v"].render(messages))
    with pytest.raises(BadSample, match="message 2: an image or a video in a message of role 'ipython'"):
        chats["glm4.5v"].render(messages)
