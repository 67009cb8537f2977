"""Published sizes of Qwen/Qwen3.5-35B-A3B (Qwen3.6 of this size has the same), 122B-A10B and 397B-A17B.

Read in public copies: THUDM/slime, scripts/models (35B-A3B and 397B-A17B); configurations of two runtimes and
their test data (122B-A10B, value heads of 397B-A17B). The encoder is 27B's.
"""

from __future__ import annotations

from typing import Any

from torchtune_qwenvl.models.qwen3_5._sizes import IMAGE_MEAN, IMAGE_STD, config_of

__all__ = ["IMAGE_MEAN", "IMAGE_STD", "published_config"]

#            width layers heads value heads, experts, of a token, expert width
_SIZES = {
    "35b_a3b": (2048, 40, 16, 32, 256, 8, 512),
    "122b_a10b": (3072, 48, 32, 64, 256, 8, 1024),
    "397b_a17b": (4096, 60, 32, 64, 512, 10, 1024),
}


def published_config(size: str) -> dict[str, Any]:
    """What config.json of "35b_a3b", "122b_a10b" or "397b_a17b" says about the architecture."""
    width, layers, heads, value_heads, experts, chosen, inner = _SIZES[size]
    text = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 2,
        "linear_num_value_heads": value_heads,
        "num_experts": experts,
        "num_experts_per_tok": chosen,
        "moe_intermediate_size": inner,
        "shared_expert_intermediate_size": inner,
    }
    return config_of("qwen3_5_moe", "large", False, text)
