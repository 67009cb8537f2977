"""Published sizes of zai-org/GLM-4.5V and zai-org/GLM-4.6V: one architecture, two contexts.

4.5V: a printed config with the shapes of all tensors, 107,710,933,120 parameters, as built here; encoder also
in ggml-org/llama.cpp#16600, token ids and router entries in NVIDIA-NeMo/Megatron-Bridge's conversion test.
4.6V: a copy of GLM-4.6V-FP8's config.json in hlky/dinoml_v2 at 6b8c0acb,
agents/plans/transformers/glm46v/_sources; report.md next to it finds the same for GLM-4.6V.
"""

from __future__ import annotations

from typing import Any

from torchtune_qwenvl.models.glm4v._sizes import IMAGE_MEAN, IMAGE_STD
from torchtune_qwenvl.models.glm4v._sizes import published_config as dense_config

__all__ = ["IMAGE_MEAN", "IMAGE_STD", "published_config"]

#       context  theta
_SIZES = {
    "4.5v": (65536, 1e4),
    "4.6v": (131072, 5e5),
}


def published_config(size: str) -> dict[str, Any]:
    """What config.json of "4.5v" or "4.6v", 106B-A12B both, says about the architecture."""
    context, theta = _SIZES[size]
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
            "max_position_embeddings": context,
            "rope_theta": theta,
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
