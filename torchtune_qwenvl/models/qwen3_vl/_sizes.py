"""Published sizes of Qwen/Qwen3-VL-*-Instruct; Thinking is taken to have the same.

2B and 8B: pytorch/torchtitan, torchtitan/experiments/qwen3_vl/__init__.py; 2B's config.json in a copy with
fewer layers; 8B's, and 4B's, whole in public copies (8B: 8,767,123,696 parameters listed, as built here).
32B: a copy of Qwen3-VL-32B-Thinking-FP8's config.json in hlky/dinoml_v2 at 6b8c0acb,
agents/plans/transformers/qwen3_vl/_sources.
"""

from __future__ import annotations

from typing import Any

# Of the published preprocessor_config.json.
IMAGE_MEAN = (0.5, 0.5, 0.5)
IMAGE_STD = (0.5, 0.5, 0.5)

# name: (width, layers, inner width, DeepStack layers)
ENCODERS = {
    "small": (1024, 24, 4096, [5, 11, 17]),
    "large": (1152, 27, 4304, [8, 16, 24]),
}
#       width  layers  heads  kv  inner  tied   encoder
_SIZES = {
    "2b": (2048, 28, 16, 8, 6144, True, "small"),
    "4b": (2560, 36, 32, 8, 9728, True, "small"),
    "8b": (4096, 36, 32, 8, 12288, False, "large"),
    "32b": (5120, 64, 64, 8, 25600, False, "large"),
}


def published_config(size: str) -> dict[str, Any]:
    """What config.json of "2b", "4b", "8b" or "32b" says about the architecture."""
    width, layers, heads, kv_heads, inner, tied, encoder = _SIZES[size]
    text = {"num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads}
    return config_of("qwen3_vl", encoder, tied, {**text, "hidden_size": width, "intermediate_size": inner})


def config_of(model_type: str, encoder: str, tied: bool, text: dict[str, Any]) -> dict[str, Any]:
    """config.json around the entries of `text` that differ between sizes."""
    width, depth, inner, deepstack = ENCODERS[encoder]
    return {
        "model_type": model_type,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "tie_word_embeddings": tied,
        "text_config": {
            **text,
            "head_dim": 128,
            "vocab_size": 151936,
            "rms_norm_eps": 1e-6,
            "max_position_embeddings": 262144,
            "rope_theta": 5000000,
            "rope_scaling": {
                "rope_type": "default",
                "mrope_section": [24, 20, 20],
                "mrope_interleaved": True,
            },
            "dtype": "bfloat16",
        },
        "vision_config": {
            "depth": depth,
            "hidden_size": width,
            "intermediate_size": inner,
            "num_heads": 16,
            "out_hidden_size": text["hidden_size"],
            "deepstack_visual_indexes": deepstack,
            "num_position_embeddings": 2304,
            "in_channels": 3,
            "patch_size": 16,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
        },
    }
