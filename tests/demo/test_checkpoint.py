"""The demo's checkpoint folder is an ordinary one: transformers loads it and computes the same logits."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torchtune.data import Message
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from torchtune_qwenvl import load_model, load_transform
from torchtune_qwenvl.data import collate
from torchtune_qwenvl.demo import write_tiny_checkpoint
from torchtune_qwenvl.demo.digits import ANSWER, QUESTION


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    write_tiny_checkpoint(str(path))
    return path


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (56, 84), dtype=np.uint8))


def test_transformers_finds_every_tensor(folder: Path):
    _, found = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert not any(found.values())


def test_tokens_patches_and_logits_equal_transformers(folder: Path, image: Image.Image):
    processor = AutoProcessor.from_pretrained(folder)
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    theirs = processor(text=[text], images=[image.convert("RGB")], return_tensors="pt")
    question = Message("user", [{"type": "image", "content": image}, {"type": "text", "content": QUESTION}])
    sample = load_transform(folder)({"messages": [question]}, inference=True)
    assert sample["tokens"] == theirs["input_ids"][0].tolist()
    batch = collate([sample], padding_idx=0)
    del batch["labels"]
    assert torch.equal(batch["encoder_input"]["vision"]["pixel_values"], theirs["pixel_values"])
    with torch.no_grad():
        ours = load_model(folder)(**batch)
        expected = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)(**theirs).logits
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_answers_are_short_and_other_text_is_bytes(folder: Path):
    transform = load_transform(folder)
    for text in (*(ANSWER.format(digit=digit) for digit in range(10)), "Zürich 東京 🙂"):
        tokens = transform.encode(text, add_bos=False, add_eos=False)
        assert transform.decode(tokens) == text
        assert len(tokens) <= (6 if text.startswith("The") else len(text.encode()))


def test_weights_depend_on_the_seed_alone(folder: Path, tmp_path: Path):
    torch.manual_seed(123)
    write_tiny_checkpoint(str(tmp_path / "same"))
    write_tiny_checkpoint(str(tmp_path / "other"), seed=1)
    first, same, other = (
        load_file(path / "model.safetensors") for path in (folder, tmp_path / "same", tmp_path / "other")
    )
    assert all(torch.equal(first[name], same[name]) for name in first)
    changed = {name for name in first if not torch.equal(first[name], other[name])}
    assert changed == {name for name, tensor in first.items() if tensor.dim() > 1}


def test_config_has_the_published_form(folder: Path):
    config = json.loads((folder / "config.json").read_text())
    assert config["hidden_size"] == 128 and "text_config" not in config
    assert "visual.patch_embed.proj.weight" in load_file(folder / "model.safetensors")
