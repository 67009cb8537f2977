"""Published sizes of Qwen/Qwen3-VL-30B-A3B and 235B-A22B, Instruct; Thinking is taken to have the same.

Read in public copies of config.json with the shapes of all tensors (31,070,754,032 and 235,670,022,896
parameters, as built here) and in pytorch/torchtitan, torchtitan/experiments/qwen3_vl/__init__.py.
"""

from __future__ import annotations

from typing import Any

from torchtune_qwenvl.models.qwen3_vl._sizes import IMAGE_MEAN, IMAGE_STD, config_of

__all__ = ["IMAGE_MEAN", "IMAGE_STD", "published_config"]

#             width  layers  heads  kv  expert  dense
_SIZES = {
    "30b_a3b": (2048, 48, 32, 4, 768, 6144),
    "235b_a22b": (4096, 94, 64, 4, 1536, 12288),
}


def published_config(size: str) -> dict[str, Any]:
    """What config.json of "30b_a3b" or "235b_a22b" says about the architecture."""
    width, layers, heads, kv_heads, expert, inner = _SIZES[size]
    text = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": inner,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": expert,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }
    return config_of("qwen3_vl_moe", "large", False, text)
