"""Weight names of GLM-4.1V: transformers' module tree on the left, ours on the right.

Published checkpoints and `save_pretrained` spell the module tree's names.
"""

from torchtune_qwenvl.models import weight_rows as shared
from torchtune_qwenvl.models.weight_table import WeightTable

_MERGER = "vision_encoder.merger"

VISION: shared.Rows = {
    "model.visual.patch_embed.proj.{p}": "vision_encoder.patch_embed.{p}",
    "model.visual.post_conv_layernorm.weight": "vision_encoder.patch_norm.scale",
    "model.visual.embeddings.position_embedding.weight": "vision_encoder.position_embed.weight",
    **shared.VISION_RMS_NORMS,
    **shared.VISION_QKV,
    f"{shared.BLOCK}.attn.proj.weight": f"{shared.VISION_LAYER}.attn.output_proj.weight",
    **shared.VISION_SWIGLU,
    "model.visual.post_layernorm.weight": f"{_MERGER}.norm.scale",
    "model.visual.downsample.{p}": f"{_MERGER}.downsample.{{p}}",
    "model.visual.merger.proj.weight": f"{_MERGER}.proj.weight",
    "model.visual.merger.post_projection_norm.{p}": f"{_MERGER}.proj_norm.{{p}}",
    "model.visual.merger.gate_proj.weight": f"{_MERGER}.mlp.w1.weight",
    "model.visual.merger.down_proj.weight": f"{_MERGER}.mlp.w2.weight",
    "model.visual.merger.up_proj.weight": f"{_MERGER}.mlp.w3.weight",
}
_TEXT, _LAYER = shared.TEXT, shared.TEXT_LAYER

GLM4V_WEIGHTS = WeightTable(
    rows={
        **VISION,
        **shared.DECODER,
        f"{_TEXT}.post_self_attn_layernorm.weight": f"{_LAYER}.sa_scale.scale",
        f"{_TEXT}.mlp.gate_up_proj.weight": (f"{_LAYER}.mlp.w1.weight", f"{_LAYER}.mlp.w3.weight"),
        f"{_TEXT}.post_mlp_layernorm.weight": f"{_LAYER}.mlp_scale.scale",
    },
    prefixes={"model.": "model."},
    tied=shared.TIED,
)
