"""Published sizes of zai-org/GLM-4.1V-9B-* and zai-org/GLM-4.6V-Flash.

Copies of config.json of GLM-4.1V-9B-Thinking and GLM-4.6V-Flash: hlky/dinoml_v2 at 6b8c0acb,
agents/plans/transformers/glm4v_moe/_sources and glm46v/_sources. Base and Flash are also printed in
ai-bot-pro/achatbot#168 and, as a loader's dump, in ggml-org/llama.cpp#18164. A folder's config.json decides.
"""

from __future__ import annotations

from typing import Any

# Of transformers' `Glm4vImageProcessor`: OpenAI CLIP's channel statistics.
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

#               context  theta  image   video
_SIZES = {
    "4.1v_9b": (65536, 1e4, 151343, 151344),
    "4.6v_flash": (131072, 5e5, 151363, 151364),
}


def published_config(size: str) -> dict[str, Any]:
    """What config.json of "4.1v_9b" or "4.6v_flash" says about the architecture."""
    context, theta, image, video = _SIZES[size]
    return {
        "model_type": "glm4v",
        "image_token_id": image,
        "video_token_id": video,
        "image_start_token_id": 151339,
        "image_end_token_id": 151340,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "text_config": {
            "hidden_size": 4096,
            "num_hidden_layers": 40,
            "num_attention_heads": 32,
            "num_key_value_heads": 2,
            "intermediate_size": 13696,
            "vocab_size": 151552,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": context,
            "partial_rotary_factor": 0.5,
            "rope_theta": theta,
            "rope_scaling": {"rope_type": "default", "mrope_section": [8, 12, 12]},
        },
        "vision_config": {
            "depth": 24,
            "hidden_size": 1536,
            "num_heads": 12,
            "intermediate_size": 13696,
            "out_hidden_size": 4096,
            "in_channels": 3,
            "image_size": 336,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "rms_norm_eps": 1e-5,
            "attention_bias": False,
        },
    }
