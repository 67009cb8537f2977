"""A family from outside the package, end to end: folder, model, transform, a step, folder again."""

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from torchtune.data import Message

from torchtune_qwenvl import load_model, load_transform, save_model
from torchtune_qwenvl.data import collate
from torchtune_qwenvl.models import FAMILIES, get_family, register_family

EXAMPLES = Path(__file__).parents[2] / "examples"
TEMPLATE = """\
{%- set names = {'system': 'setting', 'user': 'human', 'assistant': 'bot'} -%}
{%- for message in messages -%}
{{- '<|im_start|>' + names[message.role] + '\\n' -}}
{%- if message.content is string -%}{{- message.content -}}{%- else -%}
{%- for part in message.content -%}
{{- part.text or '<|vision_start|><|' + part.type + '_pad|><|vision_end|>' -}}
{%- endfor -%}{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>bot\\n' -}}{%- endif -%}
"""


@pytest.fixture(scope="module")
def toy():
    sys.path.insert(0, str(EXAMPLES))
    yield importlib.import_module("toy_family")
    sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def folder(toy, tmp_path_factory):
    path = tmp_path_factory.mktemp("toy")
    model = toy.toy_vl_tiny()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    pieces: dict[str, list[torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        pieces.setdefault(toy.TOY_VL.weights.theirs(name).name, []).append(parameter.detach())
    joined = {name: torch.cat(parts) for name, parts in pieces.items()}
    save_file(joined, path / "model.safetensors", {"format": "pt"})
    added = {str(256 + i): {"content": t.content, "special": True} for i, t in enumerate(added_tokens(toy))}
    files = {
        "config.json": model.config,
        "vocab.json": {letter: i for i, letter in enumerate(sorted(ByteLevel.alphabet()))},
        "tokenizer_config.json": {
            "added_tokens_decoder": added,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
        },
        "chat_template.json": {"chat_template": TEMPLATE},
        "preprocessor_config.json": {
            **{"patch_size": 8, "temporal_patch_size": 2, "merge_size": 2},
            **{"min_pixels": 256, "max_pixels": 4096, "image_mean": [0.4] * 3, "image_std": [0.5] * 3},
        },
    }
    for name, content in files.items():
        (path / name).write_text(json.dumps(content))
    (path / "merges.txt").write_text("#version: 0.2\n")
    return path


def added_tokens(toy):
    return toy.ToyVLTransform.published.added_tokens


def batch_of(transform):
    question = [{"type": "image", "content": tiny.photo(40, 60)}, {"type": "text", "content": "What?"}]
    sample = transform({"messages": [Message("user", question), Message("assistant", "A photo.")]})
    labels = [-100 if masked else t for t, masked in zip(sample["tokens"], sample["mask"], strict=True)]
    return collate([{**sample, "labels": labels}], padding_idx=transform.pad_id, ignore_idx=-100)


def loss_of(model, batch):
    total, n = model(**batch)
    return total / n


def test_the_toy_family_loads_trains_saves_and_loads_again(folder, tmp_path):
    transform = load_transform(folder, dtype="uint8")
    tokens = batch_of(transform)["tokens"][0]
    text = transform.decode(tokens, truncate_at_eos=False, skip_special_tokens=False)
    assert text.startswith("<|im_start|>human\n<|vision_start|><|image_pad|>")
    assert text.endswith("What?<|im_end|>\n<|im_start|>bot\nA photo.<|im_end|>\n")
    model, batch = load_model(folder), batch_of(transform)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    before = loss_of(model, batch)
    before.backward()
    assert model.vision_encoder.merger.w1.weight.grad.abs().sum() > 0
    optimizer.step()
    after = loss_of(model, batch)
    assert after < before
    out = save_model(model, tmp_path / "out", source=folder)
    again = load_model(out)
    for (name, one), other in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other), name
    assert torch.equal(loss_of(again, batch), after)


def test_its_pixels_in_bytes_and_in_floats_give_the_same_loss(folder):
    model = load_model(folder)
    losses = [loss_of(model, batch_of(load_transform(folder, dtype=kind))) for kind in ("uint8", "float32")]
    torch.testing.assert_close(*losses)


def test_lora_takes_its_merger(folder, tmp_path):
    lora = {"lora_attn_modules": ["q_proj"], "apply_lora_to_mlp": True, "lora_rank": 2, "lora_alpha": 4}
    model = load_model(
        folder, fusion_trainable="lora", encoder_trainable=False, decoder_trainable=False, **lora
    )
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == [f"vision_encoder.merger.w1.lora_{side}.weight" for side in "ab"]
    save_model(model, tmp_path / "out", source=folder)


def test_a_family_is_registered_once_and_under_a_new_name(toy):
    assert get_family({"model_type": "toy_vl"}) is toy.TOY_VL
    register_family(toy.TOY_VL)
    for family in (replace(toy.TOY_VL), FAMILIES["qwen2_vl"]):
        other = replace(family, transform=print)
        with pytest.raises(ValueError, match=rf"'{family.model_type}' is registered already"):
            register_family(other)
    message = r"'toy_v' is not known, expected one of .*'toy_vl'.*register_family"
    with pytest.raises(ValueError, match=message):
        get_family({"model_type": "toy_v"})
