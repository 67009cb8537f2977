"""Quantised folders: block-scaled FP8 is read as transformers reads it, others are refused by name."""

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from torchtune_qwenvl import load_model, load_vision_encoder, save_model
from torchtune_qwenvl.checkpoints.folder import CheckpointFolder
from torchtune_qwenvl.checkpoints.reading.quantised import Scaled
from torchtune_qwenvl.checkpoints.weight_plan import plan_weights
from torchtune_qwenvl.models import get_family

FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}
BLOCK = 32  # tiny models have few columns; published folders have 128


def to_fp8(weight: torch.Tensor, block: int = BLOCK) -> tuple[torch.Tensor, torch.Tensor]:
    """FP8 values [.., r, c] and scales per block, written out block by block."""
    rows, columns = (-(-side // block) for side in weight.shape[-2:])
    quantised = torch.empty_like(weight, dtype=torch.float8_e4m3fn)
    scales = weight.new_empty(*weight.shape[:-2], rows, columns, dtype=torch.float32)
    for i in range(rows):
        for j in range(columns):
            part = (..., slice(i * block, (i + 1) * block), slice(j * block, (j + 1) * block))
            scale = weight[part].float().abs().amax((-2, -1)) / 448
            scales[..., i, j] = scale
            quantised[part] = (weight[part].float() / scale[..., None, None]).to(torch.float8_e4m3fn)
    return quantised, scales


def fp8_folder(folder: Path, *, stated: bool = True, **settings) -> Path:
    """A folder as transformers writes it: the decoder's linears in FP8, everything else in bf16."""
    tiny.save_tiny_folder(folder, dtype=torch.bfloat16, **settings)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {**FP8, "modules_to_not_convert": ["visual", "lm_head"]}
    config["quantization_config"] |= {"weight_block_size": [BLOCK, BLOCK]} if stated else {}
    (folder / "config.json").write_text(json.dumps(config))
    for path in folder.glob("*.safetensors"):
        weights = load_file(path)
        for name in [n for n in weights if "layers" in n and "proj" in n and weights[n].ndim > 1]:
            weights[name], weights[f"{name}_scale_inv"] = to_fp8(weights[name])
        save_file(weights, path, {"format": "pt"})
        if (index := folder / "model.safetensors.index.json").is_file():
            content = json.loads(index.read_text())
            content["weight_map"] |= dict.fromkeys(weights, path.name)
            index.write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("stated", [True, False], ids=["stated", "by shapes"])
def test_fp8_is_what_transformers_makes_of_it(tmp_path, stated):
    source = fp8_folder(tmp_path / "fp8", stated=stated, max_shard_size="150KB")
    ours = load_model(source)
    theirs = AutoModelForImageTextToText.from_pretrained(source, dtype="auto")
    assert {p.dtype for p in ours.parameters()} == {torch.bfloat16}
    out = save_model(ours, tmp_path / "out", source=source)
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert not [name for name in index["weight_map"] if name.endswith("scale_inv")]
    again, info = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True, dtype="auto")
    assert not any(info.values()), info
    expected, saved = theirs.state_dict(), again.state_dict()
    assert all(torch.equal(expected[name], saved[name]) for name in saved)
    plain = load_model(tiny.save_tiny_folder(tmp_path / "plain", dtype=torch.bfloat16))
    q, exact = (m.decoder.layers[0].attn.q_proj.weight.float() for m in (ours, plain))
    assert not torch.equal(q, exact) and (q - exact).abs().max() <= exact.abs().max() / 16


def test_stacked_experts_have_scales_of_their_own_and_ranks_read_their_rows(tmp_path):
    source = fp8_folder(tmp_path / "fp8", family="qwen3_vl_moe", text={"moe_intermediate_size": 48})
    model = dict(load_model(source).named_parameters())
    with CheckpointFolder(source) as files:
        shapes = {name: tuple(p.shape) for name, p in model.items()}
        plan = plan_weights(files, get_family(files.config).weights, shapes)
        for name, stored in plan.items():
            half = max(1, stored.shape[0] // 3)
            assert torch.equal(torch.cat([stored.read(0, half), stored.read(half)]), model[name]), name


@pytest.mark.parametrize("shape", [(256, 384), (200, 300), (3, 130, 129)])
def test_blocks_of_128_by_hand(shape):
    weight = torch.randn(shape)
    quantised, scales = to_fp8(weight, 128)
    expected = torch.empty(shape, dtype=torch.bfloat16)
    for row in range(shape[-2]):
        for column in range(0, shape[-1], 128):
            values = quantised[..., row, column : column + 128].float()
            scale = scales[..., row // 128, column // 128, None]
            expected[..., row, column : column + 128] = (values * scale).bfloat16()
    scaled = Scaled("scale", (128, 128))
    found = scaled.dequantise(quantised, scales, 0, torch.bfloat16)
    assert torch.equal(found, expected) and (found.float() - weight).abs().max() < 0.2
    lower = scaled.dequantise(quantised[..., 100:, :], scales, 100, torch.bfloat16)
    assert torch.equal(lower, expected[..., 100:, :])


def test_scales_that_fit_no_blocks_are_named(tmp_path):
    source = fp8_folder(tmp_path / "fp8")
    weights = load_file(source / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight_scale_inv"] = torch.ones(5, 7)
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"fp8: tensor model.layers.0.mlp.up_proj.weight .*fit no blocks"):
        load_model(source)


def packed(weights: dict, names: dict[str, torch.Tensor]) -> dict:
    """Some tensors of a weight's linear instead of the weight."""
    base = "model.layers.0.mlp.up_proj."
    kept = {n: w for n, w in weights.items() if n != f"{base}weight"}
    return kept | {base + n: w.clone() for n, w in names.items()}


INTS, BYTES = torch.ones(8, 8, dtype=torch.int32), torch.ones(96, 64, dtype=torch.uint8)
FORMATS = {
    "AWQ": (
        {"quant_method": "awq", "bits": 4},
        {"qweight": INTS, "qzeros": INTS, "scales": torch.ones(8, 8)},
    ),
    "GPTQ": ({"quant_method": "gptq"}, {"qweight": INTS, "qzeros": INTS, "g_idx": INTS[0]}),
    "bitsandbytes": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, {"weight": BYTES}),
    "compressed-tensors": ({"quant_method": "compressed-tensors"}, {"weight_packed": INTS}),
    "FP8": (FP8, {"weight": torch.ones(96, 64).to(torch.float8_e4m3fn), "weight_scale": torch.ones(1)}),
    "hqq_of_tomorrow": ({"quant_method": "hqq_of_tomorrow"}, {"W_q": BYTES}),
}
BY_NAME = {
    "AWQ or GPTQ": {"qweight": INTS},
    "bitsandbytes": {"weight": BYTES.to(torch.int8), "SCB": torch.ones(96)},
    "compressed-tensors": {"weight_packed": INTS},
    "in a form that is not known": {"weight": BYTES.to(torch.int8)},
    "FP8": {"weight": torch.ones(96, 64).to(torch.float8_e4m3fn)},
}


def quantised_folder(source: Path, folder: Path, config: dict, tensors: dict[str, torch.Tensor]) -> Path:
    shutil.copytree(source, folder)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, **config}))
    weights = packed(load_file(folder / "model.safetensors"), tensors)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("name", FORMATS)
def test_a_quantised_folder_is_named_with_the_checkpoint_to_take(tiny_folder, tmp_path, name):
    config, tensors = FORMATS[name]
    where = tmp_path / f"Tiny-VL-Instruct-{'AWQ' if name == 'AWQ' else 'GPTQ-Int4'}"
    folder = quantised_folder(tiny_folder, where, {"quantization_config": config}, tensors)
    message = (
        rf"{where.name}: a quantised checkpoint, {name} .*unquantised checkpoint, Tiny-VL-Instruct; with"
    )
    with pytest.raises(ValueError, match=message):
        load_model(folder)
    assert len(load_vision_encoder(folder).layers) == 3  # whose weights are plain


@pytest.mark.parametrize("name", BY_NAME)
def test_it_is_known_by_its_tensors_where_config_json_says_nothing(tiny_folder, tmp_path, name):
    folder = quantised_folder(tiny_folder, tmp_path / "model", {}, BY_NAME[name])
    with pytest.raises(ValueError, match=rf"a quantised checkpoint, {name}.*the one that it was made from"):
        load_model(folder)


def test_a_dtype_that_plain_files_do_not_have_and_gguf(tiny_folder, tmp_path):
    config = {"quantization_config": {"quant_method": "mxfp4"}}
    folder = quantised_folder(tiny_folder, tmp_path / "model", config, {})
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(raw.replace(b'"F32"', b'"F4" ', 1))
    with pytest.raises(ValueError, match=r"a quantised checkpoint, mxfp4"):
        load_model(folder)
    (folder / "model.safetensors").rename(folder / "model-Q4_K_M.gguf")
    with pytest.raises(ValueError, match=r"a quantised checkpoint"):
        load_model(folder)
