"""Sizes and config files: published counts on meta, both forms of config.json, and what is refused."""

import copy
import json

import pytest
import tiny
import torch
from torchtune.modules import TransformerSelfAttentionLayer

from torchtune_qwenvl import models
from torchtune_qwenvl.models import qwen2_5_vl
from torchtune_qwenvl.models.qwen2_5_vl import qwen2_5_vl_from_config
from torchtune_qwenvl.models.qwen2_5_vl._hf_config import normalise_config

COUNTS = {
    "qwen2_5_vl_3b": 3_754_622_976,
    "qwen2_5_vl_7b": 8_292_166_656,
    "qwen2_5_vl_32b": 33_452_718_336,
    "qwen2_5_vl_72b": 73_410_777_344,
}


@pytest.mark.parametrize(("builder", "count"), COUNTS.items())
def test_published_parameter_counts(builder, count):
    with torch.device("meta"):
        model = getattr(qwen2_5_vl, builder)()
    assert sum(p.numel() for p in model.parameters()) == count
    assert not list(model.buffers())


def test_layers_are_what_torchtune_wraps_compiles_and_shards():
    model = qwen2_5_vl_from_config(tiny.tiny_hf_config().to_dict())
    layers = [n for n, m in model.named_modules() if isinstance(m, TransformerSelfAttentionLayer)]
    assert layers == [f"vision_encoder.layers.{i}" for i in range(3)] + [
        f"decoder.layers.{i}" for i in range(2)
    ]
    assert model.output is model.decoder.output and isinstance(model.output, torch.nn.Module)


def test_a_tied_model_has_no_head_of_its_own_and_keeps_it_through_a_copy():
    model = qwen2_5_vl_from_config(tiny.tiny_hf_config(tie=True).to_dict())
    assert not [name for name in model.state_dict() if "output.weight" in name]
    twin = copy.deepcopy(model)
    twin.decoder.tok_embeddings.weight.data.zero_()
    state = torch.randn(1, 64)
    assert not twin.output(state).any() and model.output(state).any()


def test_both_forms_of_config_json_read_alike():
    config = tiny.tiny_hf_config(tie=True)
    nested = normalise_config(config.to_dict())
    flat = tiny.flat_config(config)
    assert normalise_config(flat) == nested
    assert nested["tie_word_embeddings"] and nested["dtype"] == "float32"
    assert nested["text_config"]["rope_parameters"]["mrope_section"] == [2, 3, 3]
    assert normalise_config(nested) == nested


def test_the_published_file_builds(tmp_path):
    published = tiny.shared_data() / "published" / "qwen2_5_vl" / "config.json"
    raw = json.loads(published.read_text())
    with torch.device("meta"):
        model = qwen2_5_vl_from_config(published)
        assert (
            qwen2_5_vl_from_config(raw).config
            == model.config
            == qwen2_5_vl_from_config(published.parent).config
        )
    assert model.config["dtype"] == "bfloat16" and model.config["vision_config"]["in_channels"] == 3
    assert models.get_family(raw) is models.get_family(published.parent) is models.FAMILIES["qwen2_5_vl"]


@pytest.mark.parametrize(
    ("top", "text", "vision", "message"),
    [
        ({}, {"use_sliding_window": True}, {}, "use_sliding_window"),
        ({}, {"layer_types": ["full_attention", "sliding_attention"]}, {}, "use_sliding_window"),
        ({}, {"hidden_size": 66}, {}, "hidden_size over num_attention_heads: 66 is no multiple of 4"),
        ({}, {"num_key_value_heads": 3}, {}, "4 is no multiple of 3"),
        ({}, {}, {"num_heads": 5}, "64 is no multiple of 20"),
        ({}, {}, {"window_size": 100}, "window_size.*100 is no multiple of 28"),
        ({}, {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 2, 3]}}, {}, "half a head"),
        (
            {},
            {"rope_parameters": {"rope_type": "proportional", "mrope_section": [2, 3, 3]}},
            {},
            "'proportional'",
        ),
        ({}, {"rope_parameters": {"rope_type": "default"}}, {}, "mrope_section"),
        ({}, {}, {"out_hidden_size": 32}, "visual tokens of width 32"),
        ({}, {}, {"fullatt_block_indexes": [1, 7]}, r"\[7\] beyond the 3 vision layers"),
        ({}, {"hidden_act": "gelu"}, {}, "hidden_act silu, got 'gelu'"),
        ({}, {"vocab_size": None}, {}, "'vocab_size'"),
        ({"image_token_id": None}, {}, {}, "'image_token_id'"),
        ({"vision_config": None}, {}, {}, "no vision_config"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(top, text, vision, message):
    raw = tiny.tiny_hf_config().to_dict()
    raw["text_config"] |= text
    raw["vision_config"] |= vision
    raw |= top
    with pytest.raises(ValueError, match=message):
        qwen2_5_vl_from_config(raw)


def test_a_missing_config_and_an_unknown_family_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no config.json at .*nowhere"):
        qwen2_5_vl_from_config(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no config.json at"):
        models.get_family(tmp_path)
    with pytest.raises(ValueError, match=r"'llama' is not known, expected one of .*'qwen2_5_vl'"):
        models.get_family({"model_type": "llama"})
