"""Published sizes of Qwen/Qwen3.5-*; Qwen3.6-27B and Qwen3.8-27B have 27B's, Qwen3.6-35B-A3B has 35B-A3B's.

Read in public copies, not in the checkpoints themselves: the decoders of 0.8B and 27B in THUDM/slime,
scripts/models; 2B, 4B, 9B and 27B in the model providers that Megatron users share; 27B in copies of
config.json of Qwen3.6-27B and Qwen3.8-27B; which encoder goes with which size in Megatron-LM's example of
Qwen3.5-VL (`get_qwen35_vl_vision_config`), 0.8B's, 4B's and 27B's also in copies of config.json.
"""

from __future__ import annotations

from typing import Any

# Of the published preprocessor_config.json.
IMAGE_MEAN = (0.5, 0.5, 0.5)
IMAGE_STD = (0.5, 0.5, 0.5)

# name: (width, layers, inner width, heads)
ENCODERS = {
    "small": (768, 12, 3072, 12),
    "medium": (1024, 24, 4096, 16),
    "large": (1152, 27, 4304, 16),
}
#       width layers heads kv inner  value heads, tied, encoder
_SIZES = {
    "0.8b": (1024, 24, 8, 2, 3584, 16, True, "small"),
    "2b": (2048, 24, 8, 2, 6144, 16, True, "medium"),
    "4b": (2560, 32, 16, 4, 9216, 32, True, "medium"),
    "9b": (4096, 32, 16, 4, 12288, 32, False, "large"),
    "27b": (5120, 64, 24, 4, 17408, 48, False, "large"),
}


def published_config(size: str) -> dict[str, Any]:
    """What config.json of "0.8b", "2b", "4b", "9b" or "27b" says about the architecture."""
    width, layers, heads, kv_heads, inner, value_heads, tied, encoder = _SIZES[size]
    text = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": inner,
        "linear_num_value_heads": value_heads,
    }
    return config_of("qwen3_5", encoder, tied, text)


def config_of(model_type: str, encoder: str, tied: bool, text: dict[str, Any]) -> dict[str, Any]:
    """config.json around the entries of `text` that differ between sizes."""
    width, depth, inner, heads = ENCODERS[encoder]
    return {
        "model_type": model_type,
        "image_token_id": 248056,
        "video_token_id": 248057,
        "vision_start_token_id": 248053,
        "vision_end_token_id": 248054,
        "tie_word_embeddings": tied,
        "text_config": {
            **text,
            "head_dim": 256,
            "vocab_size": 248320,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 262144,
            "full_attention_interval": 4,
            "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 128,
            "linear_value_head_dim": 128,
            "linear_num_key_heads": 16,
            "mtp_num_hidden_layers": 1,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000000,
                "partial_rotary_factor": 0.25,
                "mrope_section": [11, 11, 10],
                "mrope_interleaved": True,
            },
            "dtype": "bfloat16",
        },
        "vision_config": {
            "depth": depth,
            "hidden_size": width,
            "intermediate_size": inner,
            "num_heads": heads,
            "out_hidden_size": text["hidden_size"],
            "deepstack_visual_indexes": [],
            "num_position_embeddings": 2304,
            "in_channels": 3,
            "patch_size": 16,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
        },
    }
