"""Vision encoders out of checkpoints, in folders of their own, and back; transformers as the reader."""

import json
import shutil

import pytest
import tiny
import torch
from tiny_families import FAMILIES
from transformers import AutoImageProcessor, AutoModel
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

from torchtune_qwenvl import load_model, load_vision_encoder
from torchtune_qwenvl.checkpoints.vision_encoder import merge_vision_encoder, save_vision_encoder

GRIDS = [(1, 4, 6), (1, 2, 2)]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def source(family, tmp_path_factory):
    """A whole checkpoint in several shards."""
    folder = tmp_path_factory.mktemp("whole") / family
    return tiny.save_tiny_folder(folder, family=family, max_shard_size="60KB", dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def alone(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "encoder"
    return save_vision_encoder(load_vision_encoder(source), folder, source=source)


def pixels_for(encoder):
    n = sum(t * h * w for t, h, w in GRIDS)
    return torch.randint(0, 256, (n, encoder.patch_embed.still_width), dtype=torch.uint8)


def test_vision_shards_are_enough(source, tmp_path):
    """The same features bit for bit, with every shard of only the language model missing."""
    partial = shutil.copytree(source, tmp_path / "partial")
    index = json.loads((partial / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {file for name, file in index.items() if "visual" in name}
    absent = set(index.values()) - needed
    assert absent  # else this shows nothing
    for file in absent:
        (partial / file).unlink()
    encoder, model = load_vision_encoder(partial), load_model(source)
    pixels = pixels_for(encoder)
    with torch.no_grad():
        assert torch.equal(encoder(pixels, GRIDS), model.vision_encoder(pixels, GRIDS))
    (partial / min(needed)).unlink()
    with pytest.raises(ValueError, match=f"shard {min(needed)} is missing"):
        load_vision_encoder(partial)


def test_a_folder_of_its_own_gives_the_same_features(source, alone):
    encoder, again = load_vision_encoder(source), load_vision_encoder(alone)
    assert {name: p.dtype for name, p in encoder.named_parameters()} == {
        name: p.dtype for name, p in again.named_parameters()
    }
    pixels = pixels_for(encoder)
    with torch.no_grad():
        assert torch.equal(encoder(pixels, GRIDS), again(pixels, GRIDS))


def test_transformers_loads_it(family, alone):
    loader = Qwen2VisionTransformerPretrainedModel if family == "qwen2_vl" else AutoModel
    theirs, info = loader.from_pretrained(alone, output_loading_info=True, dtype=torch.float32)
    assert not any(info.values()), info
    ours = load_vision_encoder(alone, dtype=torch.float32)
    pixels = torch.randn(28, ours.patch_embed.in_features)
    with torch.no_grad():
        expected = theirs(pixels, grid_thw=torch.tensor(GRIDS), return_dict=True).pooler_output
        assert (ours(pixels, GRIDS) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert AutoImageProcessor.from_pretrained(alone).patch_size == ours.patch_embed.patch


def test_back_into_the_whole_model_byte_for_byte(source, alone, tmp_path):
    out = merge_vision_encoder(load_vision_encoder(alone), source, tmp_path / "whole")
    names = sorted(path.name for path in source.iterdir())
    assert names == sorted(path.name for path in out.iterdir())
    for name in names:
        assert (out / name).read_bytes() == (source / name).read_bytes(), name


def test_a_trained_encoder_goes_back_with_its_lora_merged(source, tmp_path):
    lora = {"lora_attn_modules": ["q_proj", "v_proj"], "lora_rank": 2, "lora_alpha": 4.0}
    encoder = load_vision_encoder(source, dtype=torch.float32, encoder_trainable="lora", **lora)
    trained = [name for name, p in encoder.named_parameters() if p.requires_grad and "lora" in name]
    assert trained
    with torch.no_grad():
        for name in trained:
            torch.nn.init.normal_(encoder.get_parameter(name), std=0.1)
    pixels = pixels_for(encoder)
    whole = merge_vision_encoder(encoder, source, tmp_path / "whole", dtype=torch.float32)
    alone = save_vision_encoder(encoder, tmp_path / "alone", source=source, dtype=torch.float32)
    with torch.no_grad():
        expected = encoder(pixels, GRIDS)
        for merged in (load_model(whole).vision_encoder, load_vision_encoder(alone)):
            assert (merged(pixels, GRIDS) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_the_originals_state_dict(family, source):
    hf = tiny.tiny_hf_model(seed=11, family=family)
    encoder = load_vision_encoder(source, dtype=torch.float32)
    for prefix in ("", "visual.", "model.visual."):
        state = {prefix + name: value for name, value in hf.model.visual.state_dict().items()}
        encoder.load_state_dict({name: torch.zeros_like(p) for name, p in encoder.named_parameters()})
        encoder.load_state_dict(state)
        pixels = torch.randn(28, encoder.patch_embed.in_features)
        with torch.no_grad():
            expected = hf.model.visual(pixels, grid_thw=torch.tensor(GRIDS), return_dict=True).pooler_output
            assert (encoder(pixels, GRIDS) - expected).abs().max() <= 1e-5 * expected.abs().max()
    state.popitem()
    with pytest.raises(RuntimeError, match="Missing key"):
        encoder.load_state_dict(state)


def test_a_classifier_is_kept_beside_the_encoder(source, tmp_path):
    encoder = load_vision_encoder(source, dtype=torch.float32)
    encoder.reset_classifier(7, "max")
    out = save_vision_encoder(encoder, tmp_path / "alone", source=source, dtype=torch.float32)
    again = load_vision_encoder(out)
    pixels = pixels_for(encoder)
    with torch.no_grad():
        assert again(pixels, GRIDS).shape == (2, 7)
        assert torch.equal(again(pixels, GRIDS), encoder(pixels, GRIDS))


def test_errors_say_what_to_do(tmp_path):
    whole = tiny.save_tiny_folder(tmp_path / "whole")
    wider = tiny.save_tiny_folder(tmp_path / "deeper", vision={"depth": 5})
    encoder = load_vision_encoder(whole)
    with pytest.raises(ValueError, match="source is missing"):
        save_vision_encoder(encoder, tmp_path / "out")
    with pytest.raises(ValueError, match="pass the folder that the model was loaded from"):
        save_vision_encoder(encoder, tmp_path / "out", source=wider)
    with pytest.raises(ValueError, match="has another vision encoder"):
        merge_vision_encoder(encoder, wider, tmp_path / "out")
    alone = save_vision_encoder(encoder, tmp_path / "alone", source=whole)
    with pytest.raises(ValueError, match="holds an encoder alone"):
        merge_vision_encoder(encoder, alone, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    text_only = shutil.copytree(whole, tmp_path / "text_only")
    from safetensors.torch import load_file, save_file

    weights = {n: w for n, w in load_file(whole / "model.safetensors").items() if "visual" not in n}
    save_file(weights, str(text_only / "model.safetensors"), metadata={"format": "pt"})
    with pytest.raises(ValueError, match="holds no vision weights"):
        load_vision_encoder(text_only)
