"""Published sizes, as config.json of each checkpoint (Qwen/Qwen2-VL-*-Instruct) has them.

The same in arXiv:2409.12191, table 1: a ViT of 675 M parameters before each of the three.
"""

from __future__ import annotations

from typing import Any

from torchtune_qwenvl.models.qwen2_5_vl._sizes import IMAGE_MEAN, IMAGE_STD

__all__ = ["IMAGE_MEAN", "IMAGE_STD", "published_config"]

#        width  layers  heads  kv  inner   vocab   tied
_SIZES = {
    "2b": (1536, 28, 12, 2, 8960, 151936, True),
    "7b": (3584, 28, 28, 4, 18944, 152064, False),
    "72b": (8192, 80, 64, 8, 29568, 152064, False),
}


def published_config(size: str) -> dict[str, Any]:
    """What config.json of "2b", "7b" or "72b" says about the architecture."""
    width, layers, heads, kv_heads, inner, vocab, tied = _SIZES[size]
    return {
        "model_type": "qwen2_vl",
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
        "max_position_embeddings": 32768,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "torch_dtype": "bfloat16",
        "vision_config": {
            "depth": 32,
            "embed_dim": 1280,
            "mlp_ratio": 4,
            "num_heads": 16,
            "hidden_size": width,
            "in_chans": 3,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
        },
    }
