"""What a config.json of Qwen2-VL must say in addition to what every family's says."""

from __future__ import annotations

from functools import partial

from torchtune_qwenvl.models.hf_config import ConfigRules
from torchtune_qwenvl.models.hf_config import normalise_config as normalise
from torchtune_qwenvl.models.hf_config import normalise_vision as vision_part

# Of transformers' Qwen2VLVisionConfig, which writes only what differs from these. Here `hidden_size` is the
# width of a visual token.
_VISION_DEFAULTS = {
    "depth": 32,
    "embed_dim": 1280,
    "mlp_ratio": 4,
    "num_heads": 16,
    "hidden_size": 3584,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
RULES = ConfigRules(
    vision=_VISION_DEFAULTS,
    vision_defaults=_VISION_DEFAULTS,
    vision_activation="quick_gelu",
    vision_width="embed_dim",
    token_width="hidden_size",
    rope_theta=1e6,
)
normalise_config = partial(normalise, rules=RULES)
normalise_vision = partial(vision_part, rules=RULES)
