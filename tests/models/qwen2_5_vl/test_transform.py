"""The transform as torchtune's ModelTokenizer and Transform, on a tiny folder."""

import io
import json
import pickle
import shutil

import numpy as np
import pytest
import tiny
import torch
from omegaconf import OmegaConf
from PIL import Image
from torchtune import config
from torchtune.data import Message
from torchtune.datasets import SFTDataset
from torchtune.modules.transforms import Transform
from torchtune.modules.transforms.tokenizers import ModelTokenizer

from torchtune_qwenvl.models.qwen2_5_vl import (
    Qwen2_5_VLImageTransform,
    Qwen2_5_VLTransform,
    load_qwen2_5_vl_transform,
    qwen2_5_vl_transform,
)
from torchtune_qwenvl.transforms.errors import BadSample, SampleTooLong

IM_START, IM_END = tiny.token_id("<|im_start|>"), tiny.token_id("<|im_end|>")


def image(size: tuple[int, int] = (56, 84), **options) -> dict:
    return {"type": "image", "content": tiny.photo(*size), **options}


def exchange(*parts, answer: str = "an answer", **flags) -> list[Message]:
    return [
        Message("user", [*parts, {"type": "text", "content": "What?"}]),
        Message("assistant", answer, **flags),
    ]


@pytest.fixture(scope="module")
def transform(tiny_folder):
    return load_qwen2_5_vl_transform(tiny_folder)


def test_sample_contract(transform):
    sample = transform({"messages": exchange(image(), image((28, 56))), "other": 1})
    assert set(sample) == {"tokens", "mask", "input_pos", "visual", "encoder_input"}
    tokens, vision = sample["tokens"], sample["encoder_input"]["vision"]
    assert isinstance(tokens, list) and all(type(token) is int for token in tokens)
    assert all(type(masked) is bool for masked in sample["mask"]) and len(sample["mask"]) == len(tokens)
    assert sample["input_pos"].shape == (len(tokens), 3) and sample["input_pos"].dtype == torch.int64
    assert vision["grid_thw"].tolist() == [[1, 4, 6], [1, 4, 6]] and vision["grid_thw"].dtype == torch.int64
    assert [patches.shape for patches in vision["images"]] == [(24, 1176), (24, 1176)]
    assert tokens.count(transform.image_token_id) == 12
    assert sample["visual"].tolist() == [i for i, t in enumerate(tokens) if t == transform.image_token_id]
    trained = [token for token, masked in zip(tokens, sample["mask"], strict=True) if not masked]
    assert trained == [*transform.encode("an answer"), IM_END, *transform.encode("\n")]


def test_text_only_sample_has_empty_vision(transform):
    vision = transform({"messages": exchange()})["encoder_input"]["vision"]
    assert vision["images"] == [] and vision["grid_thw"].shape == (0, 3)
    assert transform({"messages": exchange()})["visual"].shape == (0,)


def test_uint8_patches_hold_one_frame(tiny_folder):
    raw = load_qwen2_5_vl_transform(tiny_folder, dtype="uint8")({"messages": exchange(image())})
    patches = raw["encoder_input"]["vision"]["images"][0]
    assert patches.dtype == torch.uint8 and patches.shape == (24, 588)


def test_every_kind_of_image_gives_the_same(transform, tmp_path):
    picture = tiny.photo(60, 90)
    picture.save(tmp_path / "x.png")
    array = np.asarray(picture)
    kinds = [picture, str(tmp_path / "x.png"), tmp_path / "x.png", (tmp_path / "x.png").read_bytes(), array]
    kinds.append(torch.from_numpy(array.copy()).permute(2, 0, 1))
    samples = [transform({"messages": exchange({"type": "image", "content": kind})}) for kind in kinds]
    for sample in samples[1:]:
        assert sample["tokens"] == samples[0]["tokens"]
        patches = [s["encoder_input"]["vision"]["images"][0] for s in (sample, samples[0])]
        assert torch.equal(*patches)


def test_options_of_an_image_part(transform):
    sample = transform(
        {"messages": exchange(image(resized_height=112, resized_width=56), image(min_pixels=20000))}
    )
    assert sample["encoder_input"]["vision"]["grid_thw"].tolist() == [[1, 8, 4], [1, 10, 14]]


def test_model_tokenizer_interface(transform):
    assert {ModelTokenizer, Transform} <= set(type(transform).__mro__)
    assert transform.encode("the", add_eos=True) == [*transform.encode("the"), IM_END]
    assert transform.encode("the", add_bos=True) == transform.encode("the")
    assert transform.decode([*transform.encode("the"), IM_END, *transform.encode("in")]) == "the"
    ids = torch.tensor([IM_START, *transform.encode("in"), IM_END])
    assert transform.decode(ids, truncate_at_eos=False) == "in"
    assert (
        transform.decode(ids, truncate_at_eos=False, skip_special_tokens=False) == "<|im_start|>in<|im_end|>"
    )
    assert transform.special_tokens["<|file_sep|>"] == transform.vocab_size - 1
    assert transform.base_vocab_size == tiny.TINY_BASE and transform.vocab_size == tiny.TINY_BASE + 22
    assert transform.max_seq_len is None and transform.prompt_template is None and transform.bos_id is None


def test_tokenize_message_is_its_turn(transform):
    messages = [Message("system", "in"), *exchange(image())]
    whole, _ = transform.tokenize_messages(messages)
    assert [token for message in messages for token in transform.tokenize_message(message)] == whole
    bare = transform.tokenize_message(messages[0], tokenize_header=False, tokenize_end=False)
    assert bare == transform.encode("in")
    opened, mask = transform.tokenize_messages(messages, add_eos=False)
    assert opened == whole[: len(opened)] and opened[-1] == transform.encode("an answer")[-1]
    assert len(mask) == len(opened) == len(whole) - 2


def test_prompt_opens_the_answer(transform):
    question, answer = exchange(image())
    prompt = transform({"messages": [question]}, inference=True)
    whole = transform({"messages": [question, answer]})
    n = len(prompt["tokens"])
    assert prompt["tokens"] == whole["tokens"][:n] and not any(whole["mask"][n:])
    assert all(prompt["mask"]) and torch.equal(prompt["input_pos"], whole["input_pos"][:n])
    # torchtune's recipes end a prompt with an empty assistant message.
    again = transform({"messages": [question, Message("assistant", "")]}, inference=True)
    assert again["tokens"] == prompt["tokens"]
    with pytest.raises(BadSample, match="ends with an answer"):
        transform({"messages": [question, answer]}, inference=True)


def test_nothing_to_train_on(transform):
    for messages in ([Message("user", "x")], exchange(masked=True)):
        with pytest.raises(BadSample, match=r"nothing to train on.*inference=True"):
            transform({"messages": messages})


def test_masked_is_for_answers_only(transform):
    messages = [
        *exchange(answer="one", masked=True),
        Message("user", "x", masked=False),
        Message("assistant", "two"),
    ]
    sample = transform({"messages": messages})
    trained = [token for token, masked in zip(sample["tokens"], sample["mask"], strict=True) if not masked]
    assert transform.decode(trained) == "two"


def test_long_samples_lose_whole_turns_before_decoding(tiny_folder, tmp_path):
    (tmp_path / "late.jpg").write_bytes(jpeg := _jpeg())
    late = {"type": "image", "content": tmp_path / "late.jpg"}
    messages = [*exchange(image()), *exchange(late)]
    whole = load_qwen2_5_vl_transform(tiny_folder)({"messages": messages})
    (tmp_path / "late.jpg").write_bytes(jpeg[:-100])  # its header is whole; decoding it would raise
    n = len(whole["tokens"])
    short = load_qwen2_5_vl_transform(tiny_folder, max_seq_len=n - 1)
    sample = short({"messages": messages})
    assert sample["dropped_turns"] == 2 and "dropped_turns" not in whole
    assert sample["tokens"] == whole["tokens"][: len(sample["tokens"])]
    assert torch.equal(sample["input_pos"], whole["input_pos"][: len(sample["tokens"])])
    assert len(sample["encoder_input"]["vision"]["images"]) == 1
    assert short.tokenize_messages(messages) == (sample["tokens"], sample["mask"])
    with pytest.raises(BadSample, match=r"message 2, part 0, .*late\.jpg: cannot be decoded"):
        load_qwen2_5_vl_transform(tiny_folder, max_seq_len=n)({"messages": messages})
    with pytest.raises(SampleTooLong, match=f"has {n} tokens, max_seq_len is {n - 1}"):
        load_qwen2_5_vl_transform(tiny_folder, max_seq_len=n - 1, truncation="drop")({"messages": messages})
    with pytest.raises(SampleTooLong):
        short({"messages": messages[:-1]} | {"messages": [*messages, Message("user", "x")]}, inference=True)


def _jpeg() -> bytes:
    buffer = io.BytesIO()
    tiny.photo(80, 80).save(buffer, "JPEG")
    return buffer.getvalue()


def test_errors_say_where(transform, tmp_path):
    with pytest.raises(BadSample, match=r"message 0, part 1, .*gone\.png: no such image file"):
        transform({"messages": exchange(image(), {"type": "image", "content": tmp_path / "gone.png"})})


def test_errors_survive_workers():
    for error in (BadSample("a", where="b", fix="c"), SampleTooLong("a").at("b")):
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error) and str(copy) == str(error)
    assert isinstance(SampleTooLong("a").at("b"), SampleTooLong)


def test_pickled_transform_gives_the_same(transform):
    messages = exchange(image(), answer="<|im_end|>")
    first, second = (
        transform({"messages": messages}),
        pickle.loads(pickle.dumps(transform))({"messages": messages}),
    )
    assert first["tokens"] == second["tokens"]


def test_constructor_and_builder_equal_the_folder(transform, tiny_folder):
    files = {"path": str(tiny_folder / "vocab.json"), "merges_file": str(tiny_folder / "merges.txt")}
    direct = Qwen2_5_VLTransform(**files, max_pixels=12845056)
    listed = Qwen2_5_VLTransform(**files, special_tokens_path=tiny_folder / "tokenizer_config.json")
    component = "torchtune_qwenvl.models.qwen2_5_vl.qwen2_5_vl_transform"
    built = config.instantiate(OmegaConf.create({"_component_": component, **files, "dtype": "fp32"}))
    sample = transform({"messages": exchange(image())})
    for other in (direct, listed, built):
        assert other.special_tokens == transform.special_tokens
        assert other.stop_tokens == [IM_END, transform.pad_id]
        same = other({"messages": exchange(image())})
        assert same["tokens"] == sample["tokens"]
        images = [s["encoder_input"]["vision"]["images"][0] for s in (same, sample)]
        assert torch.equal(*images)
    with pytest.raises(ValueError, match="either path"):
        Qwen2_5_VLTransform()
    with pytest.raises(ValueError, match='expected truncation to be "drop_turns" or "drop"'):
        Qwen2_5_VLTransform(**files, truncation="cut")


def test_prompt_template(tiny_folder):
    files = {"path": str(tiny_folder / "vocab.json"), "merges_file": str(tiny_folder / "merges.txt")}
    template = {"user": ["Question: ", "\n"], "assistant": ["", "!"]}
    built = qwen2_5_vl_transform(**files, prompt_template=template)
    text = built.decode(built({"messages": exchange(image())})["tokens"], truncate_at_eos=False)
    assert "user\nQuestion: What?\n\n" in text and "an answer!\n" in text
    with pytest.raises(TypeError, match="no_such_argument"):
        qwen2_5_vl_transform(**files, no_such_argument=1)


def test_image_transform_alone():
    sample = Qwen2_5_VLImageTransform()({"image": tiny.photo(56, 84), "id": 3})
    assert sample["pixel_values"].shape == (24, 1176) and sample["id"] == 3
    assert sample["image_grid_thw"].tolist() == [[1, 4, 6]]


def test_under_torchtunes_sft_dataset(transform, tmp_path):
    rows = [{"q": "in", "a": "the"}, {"q": "and", "a": "it"}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    dataset = SFTDataset(
        source="json",
        data_files=str(tmp_path / "rows.json"),
        split="train",
        message_transform=lambda row: {"messages": exchange(image(), answer=row["a"])},
        model_transform=transform,
    )
    sample = dataset[1]
    trained = [label for label in sample["labels"] if label != -100]
    assert trained == [*transform.encode("it"), IM_END, *transform.encode("\n")]


@pytest.fixture
def folder(tiny_folder, tmp_path):
    for file in tiny_folder.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, tmp_path)
    return tmp_path


def test_another_template_is_refused_unless_builtin(folder):
    other = tiny.CHAT_TEMPLATE.replace("helpful", "careful")
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": other}))
    with pytest.raises(ValueError, match=r'chat_template\.json: .*careful.*chat_template="builtin"'):
        load_qwen2_5_vl_transform(folder)
    builtin = load_qwen2_5_vl_transform(folder, chat_template="builtin")
    assert "helpful" in builtin.decode(builtin({"messages": exchange()})["tokens"], truncate_at_eos=False)
    with pytest.raises(ValueError, match=r"chat_template is .*, got 'x'"):
        load_qwen2_5_vl_transform(folder, chat_template="x")


def test_image_token_of_another_checkpoint(folder):
    settings = json.loads((folder / "config.json").read_text()) | {"image_token_id": 5}
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="image_token_id = 5, the tokenizer has"):
        load_qwen2_5_vl_transform(folder)


def test_samples_beyond_the_models_context_are_warned_about(tiny_folder):
    transform = load_qwen2_5_vl_transform(tiny_folder, context_length=20)
    with pytest.warns(UserWarning, match="max_position_embeddings is 20; set max_seq_len"):
        transform({"messages": exchange()})


def test_overrides_and_stop_tokens(folder):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [IM_END, 3]}))
    loaded = load_qwen2_5_vl_transform(folder, max_pixels=50176, min_pixels=None)
    assert loaded.stop_tokens == [IM_END, 3]
    assert (loaded.image_transform.min_pixels, loaded.image_transform.max_pixels) == (3136, 50176)
    assert Image.MAX_IMAGE_PIXELS == 89478485  # nothing of Pillow's was changed
