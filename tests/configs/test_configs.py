"""Every packaged config resolves, names components that exist, and builds the published model."""

import pytest
import torch
from omegaconf import OmegaConf
from torchao.dtypes.nf4tensor import NF4Tensor
from torchtune.config import instantiate

from torchtune_qwenvl.modules.adapters.lora import is_adapter
from torchtune_qwenvl.settings.config import resolve
from torchtune_qwenvl.settings.files import packaged_names
from torchtune_qwenvl.training.step.optim import learning_rates
from torchtune_qwenvl.training.step.parts import trainable_by_part

# Published sizes, from the checkpoints' own indexes.
PARAMETERS = {"3B": 3_754_622_976, "7B": 8_292_166_656, "32B": 33_452_718_336, "72B": 73_410_777_344}
ADAPTERS_ONLY = ("32B", "72B")
PARTS = {
    "full": {"encoder", "fusion", "decoder"},
    "lora": {"decoder"},
    "qlora": {"decoder"},
    "stage1": {"encoder", "fusion"},
    "stage2": {"encoder", "fusion", "decoder"},
    "stage3": {"fusion", "decoder"},
}
FAMILY = [name for name in packaged_names() if name.startswith("qwen2_5_vl/")]
# Quantising these two on meta takes half a minute, so they are compared with the LoRA configs instead.
QUANTISED_LARGE = [f"qwen2_5_vl/{size}_qlora" for size in ADAPTERS_ONLY]
# Other families. 8B and 235B-A22B are counted in the published files; the others follow from our tables.
LARGE = {
    "qwen2_vl/72B_lora": 73_405_560_320,
    "qwen3_vl/8B_qlora": 8_767_123_696,
    "qwen3_vl/32B_lora": 33_357_390_064,
    "qwen3_vl_moe/235B_A22B_lora": 235_670_022_896,
    "qwen3_5/9B_qlora": 9_409_813_744,
    "qwen3_5/27B_lora": 27_356_728_560,
    "qwen3_5_moe/397B_A17B_lora": 396_802_360_816,
}


def test_all_are_there() -> None:
    methods = {size: {"lora", "qlora"} if size in ADAPTERS_ONLY else set(PARTS) for size in PARAMETERS}
    assert set(FAMILY) == {f"qwen2_5_vl/{size}_{method}" for size in methods for method in methods[size]}


@pytest.mark.parametrize("name", [name for name in FAMILY if name not in QUANTISED_LARGE])
def test_builds_the_published_model(name: str) -> None:
    size, method = name.removeprefix("qwen2_5_vl/").split("_")
    cfg = resolve(name)
    with torch.device("meta"):
        model = instantiate(cfg.model)
    assert sum(p.numel() for n, p in model.named_parameters() if not is_adapter(n)) == PARAMETERS[size]
    parts = trainable_by_part(model)
    assert set(parts) == PARTS[method]
    assert all(is_adapter(name) for part in parts.values() for name in part) == ("lora" in method)
    quantized = sum(p.numel() for p in model.parameters() if isinstance(p, NF4Tensor))
    # Everything in the decoder except embeddings, head, norms and biases.
    linears = [p for n, p in model.named_parameters() if n.startswith("decoder.layers") and not is_adapter(n)]
    assert quantized == (sum(p.numel() for p in linears if p.dim() > 1) if method == "qlora" else 0)
    assert all(0 < rate < 1e-3 for rate in learning_rates(cfg, parts).values())


@pytest.mark.parametrize("name", QUANTISED_LARGE)
def test_large_ones_quantise_the_lora_configs_model(name: str) -> None:
    assert resolve(name).model == {**resolve(name.replace("qlora", "lora")).model, "quantize_base": True}


@pytest.mark.parametrize("name", LARGE)
def test_large_ones_train_adapters_alone(name: str) -> None:
    with torch.device("meta"):
        model = instantiate(resolve(name).model)
    assert sum(p.numel() for n, p in model.named_parameters() if not is_adapter(n)) == LARGE[name]
    parts = trainable_by_part(model)
    assert set(parts) == {"decoder"} and all(is_adapter(n) for n in parts["decoder"])
    assert any(isinstance(p, NF4Tensor) for p in model.parameters()) == name.endswith("_qlora")


@pytest.mark.parametrize("name", [n for n in packaged_names() if n.partition("/")[0] not in ("demo", "vit")])
def test_those_for_gpus_keep_a_gpu_busy(name: str) -> None:
    """Rows of many tokens, and no wait for the device at each step."""
    cfg = resolve(name)
    assert cfg.pack_to >= cfg.tokenizer.max_seq_len and cfg.log_every_n_steps == 10
    assert cfg.attention_backend == "flash"


@pytest.mark.parametrize("name", packaged_names())
def test_resolves_without_anything_left_open(name: str) -> None:
    cfg = resolve(name)
    assert "${" not in OmegaConf.to_yaml(cfg, resolve=True)
    assert bool(cfg.model.get("quantize_base")) == name.endswith("_qlora")
