"""NF4 base weights: torchtune's own layers, the model of the dequantised weights, and exports that fit."""

from typing import Any

import pytest
import tiny
import torch
from cases import Case, of_scale, relative
from peft import PeftModel
from torch import nn
from torchao.dtypes.nf4tensor import NF4Tensor, to_nf4
from torchtune.modules.peft import DoRALinear, LoRALinear
from transformers import AutoModelForImageTextToText

from torchtune_qwenvl import load_model, save_model
from torchtune_qwenvl.checkpoints.adapters.peft_export import save_adapter
from torchtune_qwenvl.checkpoints.writing import save_folder
from torchtune_qwenvl.data import collate
from torchtune_qwenvl.modules.adapters.lora import Adapter, is_adapter, make_linear
from torchtune_qwenvl.modules.adapters.nf4 import dequantised
from torchtune_qwenvl.modules.trainable import plan_training
from torchtune_qwenvl.training.step.parts import trainable_table

# k_proj and v_proj, 64 x 128, are no multiple of 16,384 values: they stay as they are.
WIDE = {"hidden_size": 128, "num_attention_heads": 8, "num_key_value_heads": 4, "intermediate_size": 128}
LINEARS = ("_proj.weight", "w1.weight", "w2.weight", "w3.weight")
QLORA = {
    "encoder_trainable": "frozen",
    "fusion_trainable": "full",
    "decoder_trainable": "lora",
    "lora_attn_modules": ["q_proj", "k_proj"],
    "apply_lora_to_mlp": True,
    "lora_rank": 3,
    "lora_alpha": 5,
    "quantize_base": True,
}


@pytest.fixture(scope="module", params=["qwen2_5_vl", "glm4v", "qwen3_vl_moe", "qwen3_5"])
def source(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("qlora") / "source"
    sizes = {"text": WIDE, "vision": {"out_hidden_size": 128}}
    return tiny.save_tiny_folder(folder, family=request.param, seed=2, **sizes)


@torch.no_grad()
def trained(source, **changes: Any) -> nn.Module:
    """A quantised model whose adapters and merger have moved."""
    arguments = QLORA | changes | ({"experts_trainable": False} if "moe" in str(source_type(source)) else {})
    model = load_model(source, **arguments).eval()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def source_type(source) -> str:
    return AutoModelForImageTextToText.from_pretrained(source).config.model_type


def wholly_dequantised(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: dequantised(p.detach()) for name, p in model.named_parameters() if not is_adapter(name)}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("use_dora", [False, True])
def test_linear_is_torchtunes(use_dora: bool, bias: bool) -> None:
    adapter = Adapter(frozenset(["q_proj"]), 4, 8.0, use_dora=use_dora, quantize_base=True)
    ours = make_linear("q_proj", 128, 256, bias=bias, adapter=adapter)
    theirs = (DoRALinear if use_dora else LoRALinear)(128, 256, 4, 8.0, use_bias=bias, quantize_base=True)
    assert isinstance(ours.weight, NF4Tensor)
    theirs.load_state_dict(ours.state_dict())
    for module in (ours, theirs):
        torch.manual_seed(0)
        nn.init.normal_(module.lora_b.weight)
        if use_dora:
            nn.init.uniform_(module.magnitude, 0.5, 2)
    x = torch.randn(7, 128)
    out, expected = ours(x), theirs(x)
    if (
        use_dora and bias
    ):  # torchtune scales the bias, too: what it shifts the output by differs, nothing else
        theirs.use_bias = False
        expected = theirs(x) + theirs.bias
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)
    out.square().sum().backward()
    expected.square().sum().backward()
    for name, parameter in theirs.named_parameters():
        if "lora" in name or name == "magnitude":
            assert relative(ours.get_parameter(name).grad, parameter.grad) <= 1e-5, name


@pytest.mark.parametrize("use_dora", [False, True])
def test_exports_fit_the_quantised_model(source, tmp_path, use_dora, peft_without_torchao) -> None:
    """PEFT over dequantised weights computes what ours computes; the merged folder starts from `source`."""
    model = trained(source, use_dora=use_dora)
    plain = load_model(source)
    for name, weight in model.named_parameters():
        linear = name.startswith("decoder.layers") and name.endswith(LINEARS)
        assert isinstance(weight, NF4Tensor) == (linear and weight.numel() % 16384 == 0), name
        if isinstance(weight, NF4Tensor):
            stored = plain.get_parameter(name).detach()
            assert torch.equal(dequantised(weight), dequantised(to_nf4(stored)))
    case = Case(AutoModelForImageTextToText.from_pretrained(source), [3, (1, 10, 14), 9], [2, (1, 4, 6), 5])
    batch, theirs = collate(case.samples, padding_idx=0), case.reference_inputs()
    batch.pop("labels"), theirs.pop("labels")
    save_folder(wholly_dequantised(model), tmp_path / "dequantised", source)
    save_adapter(model, tmp_path / "adapter", source)
    base = AutoModelForImageTextToText.from_pretrained(tmp_path / "dequantised")
    real = theirs["attention_mask"].bool()
    with torch.no_grad():
        logits = model(**batch)[real]
        assert of_scale(base(**theirs).logits[real], logits) > 1e-2
        adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        assert of_scale(adapted(**theirs).logits[real], logits) <= 1e-5

    merged = load_model(save_model(model, tmp_path / "merged", source))
    for name, weight in model.named_parameters():
        module = name.removesuffix(".weight")
        if isinstance(weight, NF4Tensor) and hasattr(model.get_submodule(module), "lora_a"):
            if not use_dora:
                linear = model.get_submodule(module)
                update = (5 / 3) * linear.lora_b.weight @ linear.lora_a.weight
                torch.testing.assert_close(merged.get_parameter(name), plain.get_parameter(name) + update)
        elif isinstance(weight, NF4Tensor):
            assert torch.equal(merged.get_parameter(name), plain.get_parameter(name))


def test_what_is_left_is_listed(source) -> None:
    listed = trainable_table(trained(source), {"fusion": 1e-4, "decoder": 1e-4})
    expected = [
        "decoder.tok_embeddings.weight (float32)",
        "vision_encoder.layers.*.attn.q_proj.weight (float32)",
    ]
    expected += ["decoder.layers.*.attn.k_proj.weight (float32)"]
    assert all(entry in listed for entry in expected), listed
    assert ("experts" in listed) == ("moe" in source_type(source))
    assert "q_proj.weight (nf4)" not in listed


def test_full_decoder_is_refused() -> None:
    with pytest.raises(ValueError, match='quantize_base with decoder_trainable="full": weights of 4 bits'):
        plan_training(quantize_base=True)
    frozen = plan_training(decoder_trainable="frozen", quantize_base=True).adapters["decoder"]
    assert frozen is not None and frozen.quantize_base and not frozen.targets
