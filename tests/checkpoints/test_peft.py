"""Adapters out: PEFT on transformers' model, and the merged folder, compute what ours computes."""

import copy
import json
from contextlib import nullcontext

import pytest
import tiny
import torch
from cases import DELTA_NETS, Case, exactly, of_scale, widened
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from torchtune_qwenvl import load_model, save_model
from torchtune_qwenvl.checkpoints.adapters.peft_export import save_adapter, save_adapter_folder
from torchtune_qwenvl.checkpoints.adapters.peft_import import adapter_arguments, load_adapter
from torchtune_qwenvl.data import collate
from torchtune_qwenvl.modules.adapters.lora import is_adapter

ATTENTION = ["q_proj", "k_proj", "v_proj", "output_proj"]
RANK = {"lora_rank": 3, "lora_alpha": 5}
EVERYWHERE = {
    "encoder_trainable": "lora",
    "fusion_trainable": "lora",
    "decoder_trainable": "lora",
    "lora_attn_modules": ATTENTION,
    "apply_lora_to_mlp": True,
    **RANK,
}
SETTINGS = {
    "every linear": EVERYWHERE,
    "every linear, DoRA": {**EVERYWHERE, "use_dora": True},
    "q and v": {**EVERYWHERE, "lora_attn_modules": ["q_proj", "v_proj"]},
    "k and output, DoRA": {**EVERYWHERE, "lora_attn_modules": ["k_proj", "output_proj"], "use_dora": True},
    "decoder alone": {**EVERYWHERE, "encoder_trainable": "frozen", "fusion_trainable": False},
    "full vision": {**EVERYWHERE, "encoder_trainable": "full", "fusion_trainable": "full"},
    "full merger": {**EVERYWHERE, "fusion_trainable": True, "apply_lora_to_mlp": False},
    "full decoder": {**EVERYWHERE, "decoder_trainable": "full"},
}


MODELS = [("qwen2_5_vl", True), *((family, False) for family in tiny.FAMILIES)]


@pytest.fixture(scope="module", params=MODELS, ids=[f"{f} {'' if tie else 'un'}tied" for f, tie in MODELS])
def source(request, tmp_path_factory):
    family, tie = request.param
    return tiny.save_tiny_folder(tmp_path_factory.mktemp("peft") / "source", family=family, tie=tie, seed=2)


@pytest.fixture(scope="module")
def inputs(source):
    """(our batch, transformers' inputs) of two rows with images."""
    hf = AutoModelForImageTextToText.from_pretrained(source)
    case = Case(hf, [3, (1, 10, 14), 9], [2, (1, 4, 6), 3, (1, 8, 8), 5])
    batch = collate(case.samples, padding_idx=0)
    batch.pop("labels")
    theirs = case.reference_inputs()
    theirs.pop("labels")
    return batch, theirs


def load(source, **arguments):
    """`load_model`, with the arguments that a mixture of experts needs with DoRA: none on experts or MLPs."""
    kind = json.loads((source / "config.json").read_text())["model_type"]
    if "moe" in kind and arguments.get("use_dora"):
        arguments.setdefault("experts_trainable", False)
    if kind == "glm4v_moe" and arguments.get("use_dora"):
        arguments |= {"apply_lora_to_mlp": False, "fusion_trainable": False}
    return load_model(source, **arguments)


@torch.no_grad()
def trained(source, **arguments):
    """A model whose trained parameters all differ from their initial values."""
    model = load(source, **arguments).eval()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            shift = torch.randn_like(parameter) * (0.05 if parameter.ndim > 1 else 0.1)
            parameter.copy_(parameter * (1 + shift) if name.endswith("magnitude") else parameter + shift)
    return model


@torch.no_grad()
def logits_of(model, inputs):
    """Delta nets amplify rounding, so those are compared in fp64."""
    kind = model.config["model_type"] if isinstance(model.config, dict) else model.config.model_type
    if kind in DELTA_NETS:
        model = copy.deepcopy(model).double()
        for part in model.modules():  # PEFT's copies of modules have a config of their own
            if hasattr(getattr(part, "config", None), "_experts_implementation"):
                part.config._experts_implementation = "eager"
        inputs = widened(inputs)
    with exactly() if kind in DELTA_NETS else nullcontext():
        logits = model(**inputs)
    return getattr(logits, "logits", logits)


def compare(ours, theirs, attention_mask):
    real = attention_mask.bool()
    assert of_scale(theirs[real], ours[real]) <= 1e-5


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
def test_peft_and_merged_folder_compute_what_ours_computes(
    source, inputs, tmp_path, setting, peft_without_torchao
):
    batch, theirs = inputs
    model = trained(source, **setting)
    expected = logits_of(model, batch)
    base = AutoModelForImageTextToText.from_pretrained(source)
    before = logits_of(base, theirs)
    assert of_scale(before, expected) > 1e-2  # the adapters do something

    save_model(model, tmp_path / "merged", source=source)
    merged, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not any(info.values()), info
    compare(expected, logits_of(merged, theirs), theirs["attention_mask"])

    save_adapter(model, tmp_path / "adapter", source=source)
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    compare(expected, logits_of(adapted, theirs), theirs["attention_mask"])
    assert stored_names(adapted) == set(load_file(tmp_path / "adapter" / "adapter_model.safetensors"))


def stored_names(adapted):
    from peft import get_peft_model_state_dict

    return set(get_peft_model_state_dict(adapted, save_embedding_layers=False))


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
def test_our_adapter_folder_comes_back_bit_for_bit(source, tmp_path, setting):
    model = trained(source, **setting)
    save_adapter(model, tmp_path / "adapter", source=source)
    arguments = adapter_arguments(tmp_path / "adapter", source)
    again = load_adapter(load_model(source, **arguments), tmp_path / "adapter")
    ours, loaded = dict(model.named_parameters()), dict(again.named_parameters())
    assert ours.keys() == loaded.keys()
    assert {n: p.requires_grad for n, p in ours.items()} == {n: p.requires_grad for n, p in loaded.items()}
    assert all(torch.equal(ours[name], loaded[name]) for name in ours)


def test_fused_projections_are_block_diagonal_with_their_own_rank(source, tmp_path):
    model = trained(source, **SETTINGS["q and v"])
    save_adapter(model, tmp_path / "adapter", source=source)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (3, 5)
    fused = {f"model.visual.blocks.{i}.attn.qkv" for i in range(3)}
    assert {name for name in config["rank_pattern"] if "visual" in name} == fused
    assert set(config["rank_pattern"].values()) == {6} and set(config["alpha_pattern"].values()) == {10}
    assert config["alpha_pattern"].keys() == config["rank_pattern"].keys()
    assert all(
        name.startswith(("model.visual.", "model.language_model.")) for name in config["target_modules"]
    )
    b = load_file(tmp_path / "adapter" / "adapter_model.safetensors")[
        "base_model.model.model.visual.blocks.0.attn.qkv.lora_B.weight"
    ]
    attention = model.vision_encoder.layers[0].attn
    assert torch.equal(b[:64, :3], attention.q_proj.lora_b.weight)
    assert torch.equal(b[128:, 3:], attention.v_proj.lora_b.weight)
    assert not b[64:128].any() and not b[:64, 3:].any() and not b[128:, :3].any()


def test_a_fresh_adapter_with_zero_matrices_finds_its_parts_again(source, tmp_path):
    """lora_B is all zeros before the first step: which parts are adapted must not be read off the values."""
    arguments = {**SETTINGS["q and v"], "decoder_trainable": "frozen"}
    save_adapter(load(source, **arguments), tmp_path / "adapter", source=source)
    found = adapter_arguments(tmp_path / "adapter", source)
    assert found["lora_attn_modules"] == ["q_proj", "v_proj"]
    assert found["decoder_trainable"] == "frozen"
    load_adapter(load_model(source, **found), tmp_path / "adapter")


def test_dora_keeps_the_bias(source):
    """Scaling it too, as torchtune's module does, is what neither PEFT nor any merge computes."""
    linear = load(source, **SETTINGS["every linear, DoRA"]).vision_encoder.layers[0].attn.q_proj
    with torch.no_grad():
        linear.magnitude.mul_(2)
        x = torch.randn(4, 64)
        bias = 0 if linear.bias is None else linear.bias
        torch.testing.assert_close(linear(x), 2 * x @ linear.weight.T + bias)


def test_no_adapter_is_an_error(source, tmp_path):
    with pytest.raises(ValueError, match=r'"lora".*save_model'):
        save_adapter(load_model(source), tmp_path / "adapter", source=source)


def test_different_factors_within_one_fused_module_are_refused(source, tmp_path):
    model = load(source, **SETTINGS["q and v"])
    scaling = {"vision_encoder.layers.0.attn.q_proj": 1.0, "vision_encoder.layers.0.attn.v_proj": 2.0}
    with pytest.raises(
        ValueError, match=r"blocks.0.attn.qkv: its parts have different alpha / rank.*save_model"
    ):
        save_adapter_folder(dict(model.named_parameters()), tmp_path / "a", source, scaling=scaling)


def test_folders_that_do_not_fit_are_told(source, tmp_path):
    save_adapter(load(source, **SETTINGS["decoder alone"]), tmp_path / "adapter", source=source)
    with pytest.raises(
        ValueError, match=r"lora_a.weight \[3, \d+\] does not fit the model.*adapter_arguments"
    ):
        load_adapter(load_model(source), tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"holds nothing for vision_encoder"):
        load_adapter(load(source, **EVERYWHERE), tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"not an adapter folder, adapter_config.json is missing"):
        adapter_arguments(source, source)


def test_only_what_trains_is_in_the_folder(source, tmp_path):
    model = load(source, **SETTINGS["decoder alone"])
    save_adapter(model, tmp_path / "adapter", source=source)
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all("language_model" in name for name in stored)
    ours = {name: p for name, p in model.named_parameters() if is_adapter(name)}
    assert sum(t.numel() for name, t in stored.items() if "lora_A" in name) == sum(
        p.numel() for name, p in ours.items() if "lora_a" in name
    )


def test_fully_trained_experts_beside_lora_reach_peft_and_the_merged_folder(tmp_path, peft_without_torchao):
    source = tiny.save_tiny_folder(tmp_path / "source", family="qwen3_vl_moe", seed=2)
    setting = {
        "decoder_trainable": "lora",
        "lora_attn_modules": ["q_proj"],
        **RANK,
        "experts_trainable": True,
    }
    model = trained(source, encoder_trainable="frozen", fusion_trainable="frozen", **setting)
    assert model.adapter_params() == [name for name, _ in model.named_parameters() if "experts" in name]
    tokens = torch.arange(20)[None]
    expected = logits_of(model, {"tokens": tokens})
    base = AutoModelForImageTextToText.from_pretrained(source)
    save_adapter(model, tmp_path / "adapter", source=source)
    save_model(model, tmp_path / "merged", source=source)
    merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    for theirs in (merged, adapted):
        assert of_scale(logits_of(theirs, {"input_ids": tokens}), expected) <= 1e-5
    arguments = adapter_arguments(tmp_path / "adapter", source)
    assert arguments["experts_trainable"] is True
    again = load_adapter(load_model(source, **arguments), tmp_path / "adapter")
    pairs = zip(model.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs)


def test_every_expert_has_lora_of_its_own(tmp_path):
    source = tiny.save_tiny_folder(tmp_path / "source", family="qwen3_vl_moe")
    model = load_model(source, **{**SETTINGS["decoder alone"], "lora_attn_modules": []})
    adapters = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    experts = "decoder.layers.1.mlp.experts"
    assert adapters[f"{experts}.w1.lora_a.weight"] == (6, 3, 64)
    assert adapters[f"{experts}.w2.lora_b.weight"] == (6, 64, 3)
    assert all(is_adapter(name) for name in adapters) and not [name for name in adapters if "router" in name]
    save_adapter(model, tmp_path / "adapter", source=source)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["target_parameters"] == [
        f"model.language_model.layers.{i}.mlp.experts.{name}"
        for i in (1, 2)
        for name in ("down_proj", "gate_up_proj")
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({**EVERYWHERE, "use_dora": True}, r"no DoRA.*experts_trainable=False"),
        ({"experts_trainable": "lora"}, "needs decoder_trainable"),
        ({**SETTINGS["full merger"], "experts_trainable": "lora"}, "needs decoder_trainable"),
        ({"experts_trainable": "some"}, r"experts_trainable: expected .*got 'some'"),
    ],
)
def test_what_experts_do_not_take_is_told(tmp_path, arguments, message):
    source = tiny.save_tiny_folder(tmp_path / "source", family="qwen3_vl_moe")
    with pytest.raises(ValueError, match=message):
        load_model(source, **arguments)


def test_experts_are_frozen_by_a_setting_of_their_own(tmp_path):
    source = tiny.save_tiny_folder(tmp_path / "source", family="qwen3_vl_moe")
    model = load_model(source, experts_trainable=False)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if ".experts." in name}
