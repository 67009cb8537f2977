"""Published size of GLM-4.5V (zai-org/GLM-4.5V).

Read in a public copy of its config with the shapes of all tensors: 107,710,933,120 parameters, as built here.
Encoder also in ggml-org/llama.cpp#16600, token ids and router entries in NVIDIA-NeMo/Megatron-Bridge's
conversion test of GLM-4.5V. GLM-4.6V's config was not to be found: load it by its folder.
"""

from __future__ import annotations

from typing import Any

from torchtune_qwenvl.models.glm4v._sizes import IMAGE_MEAN, IMAGE_STD
from torchtune_qwenvl.models.glm4v._sizes import published_config as dense_config

__all__ = ["IMAGE_MEAN", "IMAGE_STD", "published_config"]


def published_config(size: str) -> dict[str, Any]:
    """What config.json of "106b_a12b" says about the architecture."""
    if size != "106b_a12b":
        raise ValueError(f"expected the size 106b_a12b, got {size}")
    dense = dense_config("4.6v_flash")
    return {
        **dense,
        "model_type": "glm4v_moe",
        "text_config": {
            **dense["text_config"],
            "num_hidden_layers": 46,
            "num_attention_heads": 96,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": 10944,
            "attention_bias": True,
            "max_position_embeddings": 65536,
            "moe_intermediate_size": 1408,
            "n_routed_experts": 128,
            "n_shared_experts": 1,
            "num_experts_per_tok": 8,
            "first_k_dense_replace": 1,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.0,
        },
        "vision_config": {**dense["vision_config"], "intermediate_size": 10944},
    }
