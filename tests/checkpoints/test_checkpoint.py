"""HF folder -> ours -> HF folder: bit for bit in every layout, and transformers finds nothing missing."""

import filecmp
import json
from pathlib import Path

import pytest
import tiny
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, PreTrainedModel

from torchtune_qwenvl import load_model, load_vision_encoder, save_model
from torchtune_qwenvl.checkpoints.folder import CheckpointFolder
from torchtune_qwenvl.checkpoints.weight_plan import plan_weights
from torchtune_qwenvl.models import get_family

SHARDS = {"one shard": "1GB", "several shards": "150KB"}


def loads_cleanly(folder: Path) -> PreTrainedModel:
    """transformers' model of a folder; fails unless every key was expected and found."""
    model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True, dtype="auto")
    assert not any(info.values()), info
    return model


def folders_equal(one: Path, other: Path) -> bool:
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    same, different, errors = filecmp.cmpfiles(one, other, names, shallow=False)
    return len(same) == len(names) and not different and not errors


@pytest.mark.parametrize("shards", SHARDS.values(), ids=SHARDS.keys())
@pytest.mark.parametrize("tie", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("layout", ["published", "5.x", "in_memory"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_round_trip_is_bit_exact(tmp_path, family, layout, tie, shards):
    dtype = torch.float32 if tie else torch.bfloat16
    source = tiny.save_tiny_folder(
        tmp_path / "source", family=family, layout=layout, tie=tie, max_shard_size=shards, dtype=dtype
    )
    assert (len(list(source.glob("*.safetensors"))) > 1) == (shards != "1GB")
    model = load_model(source)
    assert {p.dtype for p in model.parameters()} == {dtype}
    out = save_model(model, tmp_path / "out", source=source)
    assert folders_equal(source, out)
    before, after = loads_cleanly(source).state_dict(), loads_cleanly(out).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_trained_weights_reach_transformers(tmp_path, family):
    source = tiny.save_tiny_folder(tmp_path / "source", family=family)
    model = load_model(source)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    save_model(model, tmp_path / "out", source=source)
    before, after = loads_cleanly(source).state_dict(), loads_cleanly(tmp_path / "out").state_dict()
    assert all(torch.equal(before[name] + 1.0, after[name]) for name in before)


def test_wider_weights_go_back_to_the_dtype_of_the_files(tmp_path):
    source = tiny.save_tiny_folder(tmp_path / "source", dtype=torch.bfloat16)
    save_model(load_model(source, dtype=torch.float32), tmp_path / "out", source=source)
    assert folders_equal(source, tmp_path / "out")


def test_dtype_on_request(tmp_path, tiny_folder):
    source = tiny.save_tiny_folder(tmp_path / "source", max_shard_size="150KB")
    out = save_model(load_model(source), tmp_path / "out", source=source, dtype=torch.bfloat16)
    model = loads_cleanly(out)
    assert model.dtype == torch.bfloat16
    expected = loads_cleanly(source).bfloat16().state_dict()
    assert all(torch.equal(expected[name], tensor) for name, tensor in model.state_dict().items())
    size = sum(load.nbytes for path in out.glob("*.safetensors") for load in load_file(path).values())
    assert json.loads((out / "model.safetensors.index.json").read_text())["metadata"]["total_size"] == size


def test_a_tied_head_that_the_file_repeats_is_kept_equal_to_the_embedding(tmp_path):
    source = tiny.save_tiny_folder(tmp_path / "source", tie=True)
    weights = load_file(source / "model.safetensors")
    save_file(
        {**weights, "lm_head.weight": weights["model.embed_tokens.weight"].clone()},
        source / "model.safetensors",
        {"format": "pt"},
    )
    model = load_model(source)
    with torch.no_grad():
        model.decoder.tok_embeddings.weight.mul_(2)
    saved = load_file(save_model(model, tmp_path / "out", source=source) / "model.safetensors")
    assert torch.equal(saved["lm_head.weight"], 2 * weights["model.embed_tokens.weight"])
    assert torch.equal(saved["model.embed_tokens.weight"], saved["lm_head.weight"])


def test_sidecars_travel_and_other_weights_do_not(tmp_path):
    source = tiny.save_tiny_folder(tmp_path / "source")
    (source / "LICENSE").write_text("as it was\n")
    (source / "pytorch_model.bin").write_bytes(b"old")
    (source / "consolidated.safetensors").write_bytes(b"another form")
    (source / "vocab.json").rename(tmp_path / "blob")
    (source / "vocab.json").symlink_to(tmp_path / "blob")  # as in the hub's cache
    out = save_model(load_model(source), tmp_path / "out", source=source)
    assert (out / "LICENSE").read_text() == "as it was\n"
    assert not (out / "vocab.json").is_symlink() and filecmp.cmp(out / "vocab.json", tmp_path / "blob", False)
    assert not (out / "pytorch_model.bin").exists() and not (out / "consolidated.safetensors").exists()


def test_what_tokenizer_and_processor_read_travels_and_what_contradicts_does_not(tmp_path):
    source = tiny.save_tiny_folder(tmp_path / "source")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tools.jinja").write_text("{{ messages }}")
    (source / "additional_chat_templates" / "notes.txt").write_text("no template")
    for name in ("adapter_config.json", "quantize_config.json"):
        (source / name).write_text("{}")
    (source / "adapter_model.safetensors").write_bytes(b"of another training")
    out = save_model(load_model(source), tmp_path / "out", source=source)
    assert (out / "additional_chat_templates" / "tools.jinja").read_text() == "{{ messages }}"
    gone = {"adapter_config.json", "quantize_config.json", "adapter_model.safetensors"}
    names = {path.name for path in source.iterdir()} - gone
    assert {path.name for path in out.iterdir()} == names
    assert [path.name for path in (out / "additional_chat_templates").iterdir()] == ["tools.jinja"]


def test_an_encoder_alone_is_no_model(tmp_path, tiny_folder):
    with pytest.raises(ValueError, match=r"vision encoder alone.*save_vision_encoder.*merge_vision_encoder"):
        save_model(load_vision_encoder(tiny_folder), tmp_path / "out", source=tiny_folder)
    assert not (tmp_path / "out").exists()


def test_an_older_export_is_replaced_and_nothing_is_left_over(tmp_path, tiny_folder):
    model = load_model(tiny_folder)
    for scale in (2.0, 3.0):
        with torch.no_grad():
            model.decoder.norm.scale.fill_(scale)
        save_model(model, tmp_path / "out", source=tiny_folder)
    assert load_model(tmp_path / "out").decoder.norm.scale[0] == 3.0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_rank_reads_the_rows_it_keeps(tiny_folder):
    with CheckpointFolder(tiny_folder) as files:
        family = get_family(files.config)
        model = load_model(tiny_folder)
        parameters = dict(model.named_parameters())
        plan = plan_weights(files, family.weights, {n: tuple(p.shape) for n, p in parameters.items()})
        assert plan.keys() == parameters.keys()
        for name, stored in plan.items():
            half = stored.shape[0] // 2
            assert torch.equal(torch.cat([stored.read(0, half), stored.read(half)]), parameters[name])
            assert stored.read(stored.shape[0] - 1, stored.shape[0] + 5).shape[0] == 1


def test_lora_starts_as_the_base_model_and_merges_into_the_folder(tmp_path, tiny_folder):
    arguments = {"lora_attn_modules": ["q_proj", "v_proj"], "lora_rank": 2, "lora_alpha": 8}
    model = load_model(tiny_folder, decoder_trainable="lora", encoder_trainable="frozen", **arguments)
    save_model(model, tmp_path / "same", source=tiny_folder)
    assert folders_equal(tiny_folder, tmp_path / "same")
    target = model.decoder.layers[0].attn.q_proj
    with torch.no_grad():
        target.lora_b.weight.normal_()
    merged = load_model(save_model(model, tmp_path / "merged", source=tiny_folder))
    expected = target.weight + 4 * target.lora_b.weight @ target.lora_a.weight
    torch.testing.assert_close(merged.decoder.layers[0].attn.q_proj.weight, expected)
    untouched = merged.decoder.layers[1].attn.q_proj.weight
    assert torch.equal(untouched, model.decoder.layers[1].attn.q_proj.weight)


@pytest.mark.parametrize("layout", ["published", "5.x"])
def test_image_statistics_come_from_the_folder(tmp_path, layout):
    """Pixel value 255 under mean 0 and deviation 0.5 is the float 2.0, whatever OpenAI's constants are."""
    source = tiny.save_tiny_folder(tmp_path / "source", layout=layout)
    path = source / ("preprocessor_config.json" if layout == "published" else "processor_config.json")
    config = json.loads(path.read_text())
    statistics = config if layout == "published" else config["image_processor"]
    statistics |= {"image_mean": [0.0] * 3, "image_std": [0.5] * 3}
    path.write_text(json.dumps(config))
    encoder = load_model(source).vision_encoder
    white = torch.full((4, 3 * 14 * 14), 255, dtype=torch.uint8)
    features = encoder(white, [[1, 2, 2]])
    torch.testing.assert_close(features, encoder(torch.full((4, 3 * 2 * 14 * 14), 2.0), [[1, 2, 2]]))


def test_header_metadata_survives(tmp_path, tiny_folder):
    out = save_model(load_model(tiny_folder), tmp_path / "out", source=tiny_folder)
    with safe_open(str(out / "model.safetensors"), framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
