"""Published sizes, as config.json of each checkpoint (Qwen/Qwen2.5-VL-*-Instruct) has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

# Of the published preprocessor_config.json: OpenAI CLIP's channel statistics.
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

#        width  layers  heads  kv  inner   vocab   tied   ViT inner
_SIZES = {
    "3b": (2048, 36, 16, 2, 11008, 151936, True, 3420),
    "7b": (3584, 28, 28, 4, 18944, 152064, False, 3420),
    "32b": (5120, 64, 40, 8, 27648, 152064, False, 3456),
    "72b": (8192, 80, 64, 8, 29568, 152064, False, 3456),
}


def published_config(size: str) -> dict[str, Any]:
    """What config.json of "3b", "7b", "32b" or "72b" says about the architecture."""
    *text, vision_inner = _SIZES[size]
    vision = {
        "hidden_size": 1280,
        "intermediate_size": vision_inner,
        "out_hidden_size": text[0],
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
    }
    return config_of("qwen2_5_vl", text, 128000, vision)


def config_of(model_type: str, text: Sequence[Any], context: int, vision: dict[str, Any]) -> dict[str, Any]:
    """config.json of a Qwen2 or Qwen2.5-VL: the same around a row of sizes, width to tied, and `vision`."""
    width, layers, heads, kv_heads, inner, vocab, tied = text
    return {
        "model_type": model_type,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": inner,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": context,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "torch_dtype": "bfloat16",
        "vision_config": {
            **vision,
            "depth": 32,
            "num_heads": 16,
            "in_chans": 3,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
        },
    }
