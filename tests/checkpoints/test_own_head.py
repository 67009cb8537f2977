"""A head in the files of a folder that says its head is tied: equal ones are tied, others are not."""

import json
import logging
from pathlib import Path

import pytest
import tiny
import torch
from cases import Case, of_scale
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from torchtune_qwenvl import load_model, save_model
from torchtune_qwenvl.checkpoints.adapters.peft_export import save_adapter
from torchtune_qwenvl.checkpoints.adapters.peft_import import adapter_arguments, load_adapter
from torchtune_qwenvl.checkpoints.checkpointer import FolderCheckpointer
from torchtune_qwenvl.checkpoints.folder import CheckpointFolder
from torchtune_qwenvl.data import collate
from torchtune_qwenvl.models import get_family

FAMILIES = ("qwen2_5_vl", "qwen3_vl")


def with_head(folder: Path, change: float, **settings) -> Path:
    """A folder that says tied and holds a head: the embeddings plus `change` in one value."""
    tiny.save_tiny_folder(folder, tie=True, **settings)
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("embed_tokens.weight"))
    head = weights[name].clone()
    head[300, 7] += change
    save_file({**weights, "lm_head.weight": head}, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module", params=[(f, layout) for f in FAMILIES for layout in ("published", "5.x")])
def source(request, tmp_path_factory) -> Path:
    family, layout = request.param
    folder = tmp_path_factory.mktemp("own head") / family
    return with_head(folder, 0.5, family=family, layout=layout)


@torch.no_grad()
def test_a_different_head_is_loaded_said_and_saved_as_its_own(source, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        ours = load_model(source)
    assert "tie_word_embeddings" in caplog.text and "head that differs" in caplog.text
    assert ours.decoder.output.weight is not ours.decoder.tok_embeddings.weight
    theirs = AutoModelForImageTextToText.from_pretrained(source)
    case = Case(theirs, [3, (1, 10, 14), 9])
    inputs = case.reference_inputs()
    batch = collate(case.samples, padding_idx=0)
    expected = theirs(**{k: v for k, v in inputs.items() if k != "labels"}).logits
    del batch["labels"]
    assert of_scale(ours(**batch), expected) <= 5e-6

    ours.decoder.output.weight.add_(1.0)
    out = save_model(ours, tmp_path / "out", source=source)
    assert torch.equal(load_model(out).decoder.output.weight, ours.decoder.output.weight)
    assert torch.equal(load_model(out).decoder.tok_embeddings.weight, ours.decoder.tok_embeddings.weight)
    config = json.loads((out / "config.json").read_text())
    assert config["tie_word_embeddings"] is False
    assert config.get("text_config", {}).get("tie_word_embeddings", False) is False
    again, info = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(again.lm_head.weight, ours.decoder.output.weight)


def test_an_equal_head_stays_tied(tmp_path, caplog):
    source = with_head(tmp_path / "equal", 0.0)
    with caplog.at_level(logging.INFO):
        model = load_model(source)
    assert "head that differs" not in caplog.text
    assert not [name for name, _ in model.named_parameters() if name.startswith("decoder.output")]
    save_model(model, tmp_path / "out", source=source)
    assert (tmp_path / "out" / "config.json").read_bytes() == (source / "config.json").read_bytes()


def test_lora_and_its_adapter_keep_the_head(source, tmp_path):
    setting = {"decoder_trainable": "lora", "encoder_trainable": "frozen", "fusion_trainable": "frozen"}
    model = load_model(source, **setting, lora_attn_modules=["q_proj"], lora_rank=2, lora_alpha=4)
    save_adapter(model, tmp_path / "adapter", source=source)
    again = load_model(source, **adapter_arguments(tmp_path / "adapter", source))
    load_adapter(again, tmp_path / "adapter")
    assert torch.equal(again.decoder.output.weight, model.decoder.output.weight)
    read = FolderCheckpointer(str(source), str(tmp_path)).load_checkpoint()["model"]
    assert torch.equal(read["decoder.output.weight"], model.decoder.output.weight)


def test_a_builder_of_a_published_size_takes_it_as_the_recipe_passes_it(source):
    """`model._component_: qwen2_5_vl_3b` is tied; the folder's head unties it."""
    with CheckpointFolder(source) as files, torch.device("meta"):
        raw = json.loads((source / "config.json").read_text())
        model = get_family(raw).from_config(raw, **files.model_arguments())
    assert "decoder.output.weight" in dict(model.named_parameters())
