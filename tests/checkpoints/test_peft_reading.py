"""Adapters that PEFT wrote: ours compute what PEFT computes, go on training, and are named where not read."""

import json

import pytest
import tiny
import torch
from cases import Case, of_scale
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from torchtune_qwenvl.checkpoints.adapters.peft_export import save_adapter
from torchtune_qwenvl.checkpoints.adapters.peft_import import adapter_arguments, adapter_state
from torchtune_qwenvl.checkpoints.start import find_start, load_start
from torchtune_qwenvl.data import collate

ALL = r".*(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj|gate_up_proj|attn\.qkv|attn\.proj)"
SETTINGS = {
    "q and v": {"target_modules": r".*language_model.*(q_proj|v_proj)", "r": 4, "lora_alpha": 16},
    "all linears, fused ones too": {"target_modules": ALL, "r": 3, "lora_alpha": 5},
    "patterns": {
        **{"target_modules": ALL, "r": 2, "lora_alpha": 6, "rank_pattern": {"q_proj": 5, r"attn\.qkv": 3}},
        **{"alpha_pattern": {"q_proj": 7}, "use_rslora": True},
    },
    "DoRA": {"target_modules": ALL, "r": 3, "lora_alpha": 5, "use_dora": True},
    "one layer": {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1], "r": 2},
    "merger trained": {"target_modules": r".*language_model.*q_proj", "modules_to_save": ["visual.merger"]},
}
CASES = [("qwen2_5_vl", name) for name in SETTINGS] + [
    (family, name) for family in ("qwen3_vl", "glm4v") for name in ("all linears, fused ones too", "DoRA")
]


@pytest.fixture(scope="module", params=CASES, ids=[" ".join(case) for case in CASES])
def written(request, tmp_path_factory):
    """(base folder, adapter folder, our batch, PEFT's logits, transformers' logits)"""
    family, name = request.param
    where = tmp_path_factory.mktemp("peft")
    source = tiny.save_tiny_folder(where / "base", family=family, seed=2)
    base = AutoModelForImageTextToText.from_pretrained(source)
    case = Case(base, [3, (1, 10, 14), 9])
    inputs = {k: v for k, v in case.reference_inputs().items() if k != "labels"}
    with torch.no_grad():
        plain = base(**inputs).logits
        setting = {"task_type": "CAUSAL_LM", **SETTINGS[name]}
        if family != "qwen2_5_vl" and name == "DoRA":
            setting["target_modules"] = r".*language_model.*(q_proj|down_proj)"
        with pytest.MonkeyPatch.context() as patch:
            import peft.import_utils
            import peft.tuners.lora.torchao

            for module in (peft.import_utils, peft.tuners.lora.torchao):
                patch.setattr(module, "is_torchao_available", lambda: False)
            adapted = get_peft_model(base, LoraConfig(**setting)).eval()
        generator = torch.Generator().manual_seed(1)
        for parameter_name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise * (0.1 if "lora" in parameter_name else 0.03))
        expected = adapted(**inputs).logits
    adapted.save_pretrained(where / "adapter")
    batch = collate(case.samples, padding_idx=0)
    del batch["labels"]
    return source, where / "adapter", batch, expected, plain


@torch.no_grad()
def test_ours_computes_what_peft_computes(written):
    source, folder, batch, expected, plain = written
    assert of_scale(plain, expected) > 1e-3
    start = find_start(folder)
    assert (start.checkpoint, start.adapter) == (source, folder)
    model = load_start(start).eval()
    assert of_scale(model(**batch), expected) <= 1e-5


@torch.no_grad()
def test_it_goes_on_as_an_adapter_of_ours(written, tmp_path, peft_without_torchao):
    source, folder, batch, expected, _ = written
    model = load_start(find_start(folder)).eval()
    save_adapter(model, tmp_path / "adapter", source=source)
    again = load_start(find_start(tmp_path / "adapter")).eval()
    assert of_scale(again(**batch), expected) <= 1e-5
    base = AutoModelForImageTextToText.from_pretrained(source)
    assert PeftModel.from_pretrained(base, tmp_path / "adapter").peft_config["default"].r >= 1


def simple(tmp_path, tensors=None, **config):
    """A base folder and an adapter of two matrices next to it."""
    source = tiny.save_tiny_folder(tmp_path / "base")
    module = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
    tensors = tensors or {f"{module}.lora_A.weight": (2, 64), f"{module}.lora_B.weight": (64, 2)}
    (tmp_path / "adapter").mkdir()
    save_file(
        {n: torch.ones(s) for n, s in tensors.items()}, tmp_path / "adapter" / "adapter_model.safetensors"
    )
    known = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "bias": "none",
        "base_model_name_or_path": str(source),
    }
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({**known, **config}))
    return source, tmp_path / "adapter"


def test_names_of_older_releases_are_read(tmp_path):
    old = "base_model.model.model.layers.1.self_attn.v_proj"
    source, folder = simple(tmp_path, {f"{old}.lora_A.weight": (2, 64), f"{old}.lora_B.weight": (32, 2)})
    assert adapter_arguments(folder, source)["lora_attn_modules"] == ["v_proj"]
    state = adapter_state(folder, load_start(find_start(folder)))
    assert state["decoder.layers.1.attn.v_proj.lora_b.weight"].shape == (32, 2)


def test_the_base_is_found_or_asked_for(tmp_path):
    source, folder = simple(tmp_path, base_model_name_or_path="Qwen/Qwen2.5-VL-3B-Instruct")
    with pytest.raises(ValueError, match=r"adapter of Qwen/Qwen2.5-VL-3B-Instruct, .* base_dir=DIR"):
        find_start(folder)
    assert find_start(folder, source).checkpoint == source
    with pytest.raises(ValueError, match=r"base_dir=.* is for adapters"):
        find_start(source, source)


HEAD = {"base_model.model.lm_head.lora_A.weight": (2, 64), "base_model.model.lm_head.lora_B.weight": (512, 2)}
EMBEDDING = {"base_model.model.model.language_model.embed_tokens.lora_embedding_A": (2, 512)}
QUERY = "base_model.model.model.language_model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("tensors", "config", "message"),
    [
        (HEAD, {}, r"LoRA on lm_head is not read.*merge it with PEFT"),
        (EMBEDDING, {}, "lora_embedding_A is not read"),
        ({f"{QUERY}.lora_A.weight": (2, 64)}, {}, "lora_A or lora_B of .*q_proj is missing"),
        ({"base_model.model.model.visual.merger.mlp.0.weight": (256, 256)}, {}, "holds no LoRA"),
        (None, {"peft_type": "IA3"}, "peft_type = 'IA3' is not read"),
        (None, {"bias": "all"}, "bias = 'all' is not read"),
        (None, {"init_lora_weights": "pissa_niter_4"}, "changed the base model's weights"),
        (None, {"layer_replication": [[0, 2]]}, "layer_replication is not read"),
        (None, {"r": "8"}, "r: expected a whole number"),
    ],
)
def test_what_is_not_read_is_named(tmp_path, tensors, config, message):
    source, folder = simple(tmp_path, tensors, **config)
    with pytest.raises(ValueError, match=message):
        adapter_arguments(folder, source)


def test_a_part_with_lora_and_trained_modules_is_refused(tmp_path):
    source, folder = simple(tmp_path)
    path = folder / "adapter_model.safetensors"
    embeddings = {"base_model.model.model.language_model.embed_tokens.weight": torch.ones(512, 64)}
    save_file({**load_file(path), **embeddings}, path)
    with pytest.raises(ValueError, match="the decoder has LoRA and modules_to_save"):
        adapter_arguments(folder, source)
