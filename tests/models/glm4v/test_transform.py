"""GLM's transform against transformers' processor: tokens, labels, positions, patches, resize rule."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from chats import Clip, Conversation, asked_about_a_file, positions_by_walk, random_conversation
from tiny_glm4v import GLM_REASONING_TEMPLATE
from transformers import AutoProcessor
from transformers.models.glm4v.image_processing_glm4v import smart_resize

from torchtune_qwenvl import load_transform
from torchtune_qwenvl.models.glm4v import GLM4VImageTransform
from torchtune_qwenvl.transforms.errors import BadSample

N_CONVERSATIONS = 520
USER, ASSISTANT, OBSERVATION = (
    tiny.token_id(f"<|{role}|>", family="glm4v") for role in ("user", "assistant", "observation")
)


@pytest.fixture(scope="module")
def samples(transform):
    """(conversation, sample); tools only where the chat format has them."""
    rng = np.random.default_rng(0)
    made = []
    while len(made) < N_CONVERSATIONS:
        conversation = random_conversation(rng)
        if "ipython" not in transform.chat.roles:
            conversation = _without_tools(conversation)
        if not all(m.masked for m in conversation.messages if m.role == "assistant"):
            made.append((conversation, transform({"messages": conversation.messages})))
    return made


def _without_tools(conversation):
    messages = [m for m in conversation.messages if m.role != "ipython"]
    by_part = [m.role for m in conversation.messages for part in m.content if part["type"] != "text"]
    media = [medium for medium, role in zip(conversation.media, by_part, strict=True) if role != "ipython"]
    return Conversation(messages, [m for m in conversation.plain if m["role"] != "tool"], media)


def test_the_format_is_found_by_the_folders_template(transform, folder, switch):
    chat = type(transform).published.chat(folder.name, **switch)
    assert replace(transform.chat, video=chat.video) == chat
    assert transform.stop_tokens[2:] == [USER, OBSERVATION][: len(transform.chat.stops)]


def test_tokens_and_patches_equal_the_processor(samples, processor, switch):
    for conversation, sample in samples:
        inputs = processed(processor, conversation, conversation.plain, **switch)
        assert sample["tokens"] == [*inputs["input_ids"][0].tolist(), USER]
        vision = sample["encoder_input"]["vision"]
        is_clip = [isinstance(medium, Clip) for medium in conversation.media]
        for kind, patches in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            chosen = [i for i, clip in enumerate(is_clip) if clip == (kind == "video")]
            if chosen:
                assert torch.equal(torch.cat([vision["images"][i] for i in chosen]), inputs[patches])
                assert torch.equal(vision["grid_thw"][chosen], inputs[f"{kind}_grid_thw"])


def processed(processor, conversation, plain, **options):
    text = processor.apply_chat_template(plain, tokenize=False, **options)
    return processor(text=[text], **conversation.processor_inputs(), return_tensors="pt")


def test_a_file_is_sampled_and_told_as_by_the_processor(folder, processor, tmp_path):
    """Of 7 seconds two frames a second are read, by GLM-4.6V six."""
    transform = load_transform(folder)
    prompt, expected = asked_about_a_file(transform, processor, tmp_path)
    assert prompt["tokens"] == expected["input_ids"][0].tolist()
    assert torch.equal(prompt["encoder_input"]["vision"]["grid_thw"], expected["video_grid_thw"])
    assert expected["video_grid_thw"][0, 0] == {"glm4.1v": 7, "glm4.6v": 21}[folder.name]


def test_the_processor_for_videos_says_how_they_are_written(folder, tmp_path):
    """GLM-4.5V has GLM-4.6V's template and GLM-4.1V's processors: whole seconds."""
    mixed = shutil.copytree(folder, tmp_path / "mixed")
    (mixed / "chat_template.json").write_text(json.dumps({"chat_template": GLM_REASONING_TEMPLATE}))
    transform, processor = load_transform(mixed), AutoProcessor.from_pretrained(mixed)
    prompt, expected = asked_about_a_file(transform, processor, tmp_path)
    assert prompt["tokens"] == expected["input_ids"][0].tolist()
    assert (" seconds" in transform.decode(prompt["tokens"])) == (folder.name == "glm4.6v")


def test_prompts_equal_the_template(samples, transform, processor, switch):
    for conversation, _ in samples[:100]:
        asked = max(i for i, m in enumerate(conversation.messages) if m.role != "assistant") + 1
        plain, messages = conversation.plain[:asked], conversation.messages[:asked]
        inputs = processed(processor, conversation, plain, add_generation_prompt=True, **switch)
        prompt = transform({"messages": messages}, inference=True)
        assert prompt["tokens"] == inputs["input_ids"][0].tolist()
        assert ASSISTANT in prompt["tokens"][-5:] and all(prompt["mask"][-2:])
        thought = "<think></think>\n" if switch else ""
        assert transform.decode(prompt["tokens"]).endswith(f"\n{thought}")


def test_labels_are_the_answers_and_the_role_that_ends_them(samples, transform):
    ends = {USER, OBSERVATION}
    for conversation, sample in samples:
        tokens, mask = sample["tokens"], sample["mask"]
        wanted = [True] * len(tokens)
        answers = iter([m for m in conversation.messages if m.role == "assistant"])
        roles = {transform.special_tokens[name] for name in transform.chat.roles.values()}
        for start in (i for i, token in enumerate(tokens) if token == ASSISTANT):
            stop = next(i for i in range(start + 1, len(tokens)) if tokens[i] in roles)
            if not next(answers).masked:
                # Behind the token of the newline, which may have merged with the answer's own.
                wanted[start + 2 : stop + (tokens[stop] in ends)] = [False] * (
                    stop - start - 2 + (tokens[stop] in ends)
                )
        assert mask == wanted
        assert next(answers, None) is None


def test_positions_equal_a_walk_over_the_tokens_and_the_reference(samples):
    """The reference's rule is the same here: no block has more than one temporal patch."""
    hf = tiny.tiny_hf_model(family="glm4v").model
    image = hf.config.image_token_id
    for _, sample in samples:
        grids = sample["encoder_input"]["vision"]["grid_thw"]
        blocks = [([0], h // 2, w // 2) for t, h, w in grids.tolist() for _ in range(t)]
        walked = torch.tensor(positions_by_walk(sample["tokens"], {image}, blocks))
        assert torch.equal(sample["input_pos"], walked)
        if len(grids):
            frames = grids.repeat_interleave(grids[:, 0], 0)
            frames[:, 0] = 1
            ids = torch.tensor([sample["tokens"]])
            kinds = (ids == image).int()
            positions, _ = hf.get_rope_index(input_ids=ids, mm_token_type_ids=kinds, image_grid_thw=frames)
            assert torch.equal(positions[:, 0].T, walked)


def test_the_resize_rule():
    rule = GLM4VImageTransform()
    assert rule.resize_to(14, 14, rule.min_pixels, rule.max_pixels) == (84, 84)
    assert rule.resize_to(3000, 4000, rule.min_pixels, rule.max_pixels) == (2100, 2800)
    rng = np.random.default_rng(0)
    for _ in range(3000):
        height, width = (int(2 ** rng.uniform(0, 13)) for _ in range(2))
        low, high = sorted(int(2 ** rng.uniform(11, 24)) for _ in range(2))
        try:
            expected = smart_resize(2, height, width, min_pixels=low, max_pixels=high)
        except ValueError:
            with pytest.raises(BadSample, match="aspect ratio"):
                rule.resize_to(height, width, low, high)
            continue
        assert rule.resize_to(height, width, low, high) == expected


def test_photographs_bit_for_bit(folder, processor):
    for i, (height, width) in enumerate([(300, 420), (33, 500), (640, 480), (10, 20)]):
        image = np.array(tiny.photo(height, width, seed=i))
        inputs = processor.image_processor(torch.from_numpy(image).permute(2, 0, 1), return_tensors="pt")
        for dtype in ("fp32", "uint8"):
            out = load_transform(folder, dtype=dtype).image_transform({"image": image})
            assert torch.equal(out["image_grid_thw"], inputs["image_grid_thw"])
            if dtype == "fp32":
                assert torch.equal(out["pixel_values"], inputs["pixel_values"])


def test_every_question_without_thinking_ends_in_the_token_for_it(samples, transform, switch):
    quiet = tiny.token_id("/nothink", family="glm4v")
    for conversation, sample in samples:
        questions = sum(message.role == "user" for message in conversation.messages)
        assert sample["tokens"].count(quiet) == (questions if switch else 0)
        marked = [i for i, token in enumerate(sample["tokens"]) if token == quiet]
        assert all(sample["mask"][i] for i in marked)
