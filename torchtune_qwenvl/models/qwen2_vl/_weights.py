"""Weight names of Qwen2-VL: the decoder's rows are Qwen2.5-VL's, the encoder's its own."""

from torchtune_qwenvl.models.qwen2_5_vl._weights import QWEN2_5_VL_WEIGHTS
from torchtune_qwenvl.training.weight_table import WeightTable

_BLOCK, _LAYER = "model.visual.blocks.{i}", "vision_encoder.layers.{i}"

QWEN2_VL_WEIGHTS = WeightTable(
    rows={
        "model.visual.patch_embed.proj.weight": "vision_encoder.patch_embed.weight",
        f"{_BLOCK}.norm1.{{p}}": f"{_LAYER}.sa_norm.{{p}}",
        f"{_BLOCK}.attn.qkv.{{p}}": (
            f"{_LAYER}.attn.q_proj.{{p}}",
            f"{_LAYER}.attn.k_proj.{{p}}",
            f"{_LAYER}.attn.v_proj.{{p}}",
        ),
        f"{_BLOCK}.attn.proj.{{p}}": f"{_LAYER}.attn.output_proj.{{p}}",
        f"{_BLOCK}.norm2.{{p}}": f"{_LAYER}.mlp_norm.{{p}}",
        f"{_BLOCK}.mlp.fc1.{{p}}": f"{_LAYER}.mlp.w1.{{p}}",
        f"{_BLOCK}.mlp.fc2.{{p}}": f"{_LAYER}.mlp.w2.{{p}}",
        "model.visual.merger.ln_q.{p}": "vision_encoder.merger.norm.{p}",
        "model.visual.merger.mlp.0.{p}": "vision_encoder.merger.mlp.w1.{p}",
        "model.visual.merger.mlp.2.{p}": "vision_encoder.merger.mlp.w2.{p}",
        **{
            theirs: ours
            for theirs, ours in QWEN2_5_VL_WEIGHTS.rows.items()
            if not theirs.startswith("model.visual.")
        },
    },
    prefixes=QWEN2_5_VL_WEIGHTS.prefixes,
    tied=QWEN2_5_VL_WEIGHTS.tied,
)
