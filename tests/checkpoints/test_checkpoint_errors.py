"""Folders that do not load and places that cannot be written: which file, which tensor, what to do."""

import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from torchtune_qwenvl import load_model, save_model
from torchtune_qwenvl.checkpoints import folder as folder_module


@pytest.fixture
def folder(tmp_path, tiny_folder):
    """A copy to break."""
    return shutil.copytree(tiny_folder, tmp_path / "broken")


@pytest.fixture
def sharded(tmp_path):
    return tiny.save_tiny_folder(tmp_path / "sharded", max_shard_size="150KB")


def rewrite(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def edit_config(folder, **entries):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **entries}))


def test_no_folder(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere: no such folder.*tune download"):
        load_model(tmp_path / "nowhere")


def test_not_a_checkpoint(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match=r"not a checkpoint folder, config.json is missing.*notes.txt"):
        load_model(tmp_path)


def test_broken_config(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json: not valid JSON"):
        load_model(folder)


def test_unknown_model_type(folder):
    edit_config(folder, model_type="llama")
    with pytest.raises(ValueError, match=r"'llama'.*qwen2_5_vl"):
        load_model(folder)


def test_no_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"neither model.safetensors nor model.safetensors.index.json"):
        load_model(folder)


def test_pickled_weights_are_refused_unread(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(ValueError, match=r"pickled weights.*never unpickled.*save_pretrained"):
        load_model(folder)


def test_missing_shard(sharded):
    next(sharded.glob("model-00002-*")).unlink()
    with pytest.raises(
        ValueError, match=r"shard model-00002-of-\d+.safetensors is missing.*download it again"
    ):
        load_model(sharded)


def test_index_that_lists_a_tensor_its_shard_lacks(sharded):
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    index["weight_map"]["lm_head.bias"] = min(index["weight_map"].values())
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"model-00001-of-\d+.safetensors: lacks the tensor lm_head.bias"):
        load_model(sharded)


def test_index_that_leaves_the_folder(sharded):
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    index["weight_map"]["lm_head.weight"] = "../elsewhere.safetensors"
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"names a file outside the folder"):
        load_model(sharded)


@pytest.mark.parametrize("keep", [0, 5, 300, -64], ids=["empty", "no header", "half a header", "cut data"])
def test_truncated_file(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model.safetensors: .*(download|copy) it again"):
        load_model(folder)


def test_not_safetensors_at_all(folder):
    (folder / "model.safetensors").write_bytes(b"\x04" + bytes(7) + b"junk" + bytes(40))
    with pytest.raises(ValueError, match=r"model.safetensors: its safetensors header cannot be read"):
        load_model(folder)


def test_missing_tensor(folder):
    rewrite(folder, lambda weights: weights.pop("visual.blocks.1.attn.qkv.bias"))
    with pytest.raises(ValueError, match=r"3 tensors are missing, model.visual.blocks.1.attn.qkv.bias"):
        load_model(folder)


def test_untied_model_without_head(folder):
    rewrite(folder, lambda weights: weights.pop("lm_head.weight"))
    with pytest.raises(ValueError, match=r"1 tensors are missing, lm_head.weight"):
        load_model(folder)


@pytest.mark.parametrize("name", ["model.layers.7.input_layernorm.weight", "visual.extra.weight"])
def test_unexpected_tensor(folder, name):
    rewrite(folder, lambda weights: weights.update({name: torch.ones(64)}))
    with pytest.raises(ValueError, match=rf"model.safetensors: tensor {name} is unexpected"):
        load_model(folder)


def test_shapes_that_do_not_fit(folder):
    edit_config(folder, intermediate_size=100)
    with pytest.raises(
        ValueError, match=r"tensor model.layers.0.mlp.down_proj.weight has shape \[64, 96\].*100\]"
    ):
        load_model(folder)


def test_not_enough_disk(tmp_path, tiny_folder, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**9, 10**9, 1000)
    monkeypatch.setattr(folder_module.shutil, "disk_usage", lambda path: usage)
    model = load_model(tiny_folder)
    with pytest.raises(ValueError, match=r"not enough disk.*nothing was written"):
        save_model(model, tmp_path / "deep" / "out", source=tiny_folder)
    assert list(tmp_path.iterdir()) == []


def test_a_source_of_another_model(tmp_path, tiny_folder):
    other = tiny.save_tiny_folder(tmp_path / "other", text={"num_hidden_layers": 1})
    with pytest.raises(ValueError, match=r"no tensor for \d+ parameters.*decoder.layers.1"):
        save_model(load_model(tiny_folder), tmp_path / "out", source=other)
    deeper = tiny.save_tiny_folder(tmp_path / "deeper", text={"num_hidden_layers": 3})
    with pytest.raises(ValueError, match=r"model.layers.2.* has no counterpart in the model"):
        save_model(load_model(tiny_folder), tmp_path / "out", source=deeper)
    wider = tiny.save_tiny_folder(tmp_path / "wider", text={"intermediate_size": 128})
    with pytest.raises(ValueError, match=r"has shape \[64, 128\], ours \[64, 96\]"):
        save_model(load_model(tiny_folder), tmp_path / "out", source=wider)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


def test_nothing_else_is_overwritten(tmp_path, folder):
    model = load_model(folder)
    for target in (folder, folder.parent):
        with pytest.raises(ValueError, match=r"is or holds the source checkpoint"):
            save_model(model, target, source=folder)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"it is not replaced"):
        save_model(model, tmp_path / "thesis", source=folder)
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "years of work"


def test_an_interrupted_save_leaves_the_older_export(tmp_path, folder, monkeypatch):
    model = load_model(folder)
    save_model(model, tmp_path / "out", source=folder)
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    monkeypatch.setattr("torchtune_qwenvl.checkpoints.writing.write_shard", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_model(model, tmp_path / "out", source=folder)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "out"]


def test_a_failing_rename_brings_the_older_export_back(tmp_path, folder, monkeypatch):
    model = load_model(folder)
    save_model(model, tmp_path / "out", source=folder)
    rename = os.rename

    def full_disk(path, target):
        if Path(path).suffix == ".partial":
            raise OSError("no space left on device")
        return rename(path, target)

    monkeypatch.setattr(os, "rename", full_disk)
    with pytest.raises(ValueError, match="no space left"):
        save_model(model, tmp_path / "out", source=folder)
    load_model(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "out"]
