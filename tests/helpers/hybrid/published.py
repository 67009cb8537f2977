"""Tiny folders of Qwen3.5 as published: with the layers `mtp.*`, which transformers does not have."""

import json
from pathlib import Path

import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedConfig

PREFIX = "mtp.layers.0."


def prediction_tensors(
    config: PreTrainedConfig, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """The tensors `mtp.*` of a folder with this config, as the published files name them."""
    text, draw = config.text_config, torch.Generator().manual_seed(4)
    w, heads, kv, d = text.hidden_size, text.num_attention_heads, text.num_key_value_heads, text.head_dim
    shapes = {
        "mtp.fc.weight": (w, 2 * w),
        **dict.fromkeys((f"mtp.pre_fc_norm_{name}.weight" for name in ("embedding", "hidden")), (w,)),
        "mtp.norm.weight": (w,),
        f"{PREFIX}input_layernorm.weight": (w,),
        f"{PREFIX}post_attention_layernorm.weight": (w,),
        f"{PREFIX}self_attn.q_proj.weight": (2 * heads * d, w),
        f"{PREFIX}self_attn.k_proj.weight": (kv * d, w),
        f"{PREFIX}self_attn.v_proj.weight": (kv * d, w),
        f"{PREFIX}self_attn.o_proj.weight": (w, heads * d),
        f"{PREFIX}self_attn.q_norm.weight": (d,),
        f"{PREFIX}self_attn.k_norm.weight": (d,),
    }
    if config.model_type == "qwen3_5":
        inner = text.intermediate_size
        shapes |= {f"{PREFIX}mlp.{name}_proj.weight": (inner, w) for name in ("gate", "up")}
        shapes[f"{PREFIX}mlp.down_proj.weight"] = (w, inner)
    else:
        experts, inner = text.num_experts, text.moe_intermediate_size
        shared = text.shared_expert_intermediate_size
        shapes |= {
            f"{PREFIX}mlp.gate.weight": (experts, w),
            f"{PREFIX}mlp.experts.gate_up_proj": (experts, 2 * inner, w),
            f"{PREFIX}mlp.experts.down_proj": (experts, w, inner),
            **{f"{PREFIX}mlp.shared_expert.{name}_proj.weight": (shared, w) for name in ("gate", "up")},
            f"{PREFIX}mlp.shared_expert.down_proj.weight": (w, shared),
            f"{PREFIX}mlp.shared_expert_gate.weight": (1, w),
        }
    return {
        name: (0.2 * torch.randn(shape, generator=draw)).to(dtype) for name, shape in sorted(shapes.items())
    }


def save_published_folder(folder: Path, family: str) -> Path:
    """A tiny folder with prediction layers; the experts of a layer are one tensor."""
    hf = tiny.tiny_hf_model(seed=2, family=family)
    layout = "published" if family == "qwen3_5" else "in_memory"
    tiny.save_tiny_folder(folder, model=hf, layout=layout)
    weights = load_file(folder / "model.safetensors")
    save_file(weights | prediction_tensors(hf.config), folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["mtp_num_hidden_layers"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    return folder
