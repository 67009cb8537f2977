"""The models: real sizes with random weights, or tiny ones of the same families for a rehearsal."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from omegaconf import DictConfig
from torch import nn
from torchtune.config import instantiate
from torchtune.config._utils import _get_component_from_path

from on_gpu.setting import Setting
from torchtune_qwenvl.modules.adapters.nf4 import is_nf4, quantised
from torchtune_qwenvl.modules.vision_language_model import VisionLanguageModel

STATISTICS = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


@dataclass(frozen=True)
class Model:
    """A config whose training is measured.

    Attributes:
        name: in the table.
        config: packaged config.
        layers: of the decoder that are kept; None: all.
        overrides: of the config.
        goal: MFU with the encoder that a compiled step shall reach on an H100; None: none is set.
    """

    name: str
    config: str
    layers: int | None = None
    overrides: tuple[str, ...] = ()
    goal: float | None = None

    def with_overrides(self, *overrides: str) -> "Model":
        """The same with more overrides."""
        return Model(self.name, self.config, self.layers, (*self.overrides, *overrides), self.goal)


# LoRA of 7B and 8B needs no recomputing on 80 GB; every other layer leaves room for what compiling needs.
HALF_RECOMPUTED = ("activation_checkpointing.decoder=0.3",)
MODELS = (
    Model("Qwen2.5-VL-3B full", "qwen2_5_vl/3B_full", goal=0.55),
    Model("Qwen2.5-VL-7B LoRA", "qwen2_5_vl/7B_lora", overrides=HALF_RECOMPUTED, goal=0.55),
    Model("Qwen3-VL-8B LoRA", "qwen3_vl/8B_lora", overrides=HALF_RECOMPUTED),
    Model("Qwen3-VL-30B-A3B LoRA, 8 layers", "qwen3_vl_moe/30B_A3B_lora", layers=8),
)
BY_NAME: Mapping[str, Model] = {model.name: model for model in MODELS}


@dataclass(frozen=True)
class _Tiny:
    """config.json's entries of a tiny model of a family."""

    text: dict[str, Any] = field(default_factory=dict)
    vision: dict[str, Any] = field(default_factory=dict)


# Matrices of at least 16,384 values, which NF4 takes.
_TEXT = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
_TEXT |= {"num_key_value_heads": 2, "head_dim": 32, "vocab_size": 512}
_VISION = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 128}
_MROPE = {"rope_type": "default", "mrope_section": [8, 4, 4], "rope_theta": 1e4}
_QWEN3 = {"rope_parameters": {**_MROPE, "mrope_interleaved": True}}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LARGE = {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}
TINY = {
    "qwen2_5_vl": _Tiny({"rope_parameters": _MROPE}, {"fullatt_block_indexes": [1]}),
    "qwen3_vl": _Tiny(_QWEN3, _LARGE),
    "qwen3_vl_moe": _Tiny({**_QWEN3, **_EXPERTS}, _LARGE),
}


def build(cfg: DictConfig, model: Model, setting: Setting) -> VisionLanguageModel:
    """The model on the meta device, tiny in a rehearsal."""
    node = cfg.model
    with torch.device("meta"):
        built = _tiny(cfg, node) if setting.rehearse else instantiate(node, **STATISTICS)
    if model.layers is not None:
        built.decoder.layers = built.decoder.layers[-model.layers :]
    return built


def _tiny(cfg: DictConfig, node: DictConfig) -> VisionLanguageModel:
    family = node._component_.split(".")[2]
    config = dict(published_config(node._component_))
    config["text_config"] = {**config["text_config"], **_TEXT, **TINY[family].text}
    config["text_config"].pop("rope_scaling", None)
    config["vision_config"] = {**config["vision_config"], **_VISION, **TINY[family].vision}
    build_from = _get_component_from_path(f"torchtune_qwenvl.models.{family}.{family}_from_config")
    arguments = {key: value for key, value in node.items() if key != "_component_"}
    if "lora_rank" in arguments:
        arguments["lora_rank"] = 4
    return build_from(config=config, **arguments, **STATISTICS)


@lru_cache
def published_config(component: str) -> dict[str, Any]:
    """config.json of the size that a builder makes, in its nested form."""
    with torch.device("meta"):
        built = _get_component_from_path(component)()
    return dict(built.config)


@torch.no_grad()
def fill(model: nn.Module, device: torch.device) -> None:
    """Random weights on the device: norms 1, biases 0, matrices with a standard deviation of 0.02."""
    model.to_empty(device=device)
    torch.manual_seed(0)
    for name, parameter in list(model.named_parameters()):
        if is_nf4(parameter):
            owner, _, leaf = name.rpartition(".")
            values = 0.02 * torch.randn(parameter.shape, device=device).to(parameter.dtype)
            weight = nn.Parameter(quantised(values), requires_grad=False)
            setattr(model.get_submodule(owner), leaf, weight)
        elif parameter.dim() == 1:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            parameter.normal_(std=0.02)
