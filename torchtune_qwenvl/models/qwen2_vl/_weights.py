"""Weight names of Qwen2-VL: the decoder's rows are Qwen2.5-VL's, the encoder's its own."""

from torchtune_qwenvl.models import weight_rows as shared
from torchtune_qwenvl.models.qwen2_5_vl._weights import QWEN2_5_VL_WEIGHTS
from torchtune_qwenvl.models.weight_table import WeightTable

_BLOCK, _LAYER = shared.BLOCK, shared.VISION_LAYER

QWEN2_VL_WEIGHTS = WeightTable(
    rows={
        "model.visual.patch_embed.proj.weight": "vision_encoder.patch_embed.weight",
        **shared.VISION_LAYER_NORMS,
        **shared.VISION_QKV,
        f"{_BLOCK}.attn.proj.{{p}}": f"{_LAYER}.attn.output_proj.{{p}}",
        f"{_BLOCK}.mlp.fc1.{{p}}": f"{_LAYER}.mlp.w1.{{p}}",
        f"{_BLOCK}.mlp.fc2.{{p}}": f"{_LAYER}.mlp.w2.{{p}}",
        "model.visual.merger.ln_q.{p}": "vision_encoder.merger.norm.{p}",
        "model.visual.merger.mlp.0.{p}": "vision_encoder.merger.mlp.w1.{p}",
        "model.visual.merger.mlp.2.{p}": "vision_encoder.merger.mlp.w2.{p}",
        **shared.DECODER,
        **shared.TEXT_GATE_AND_UP,
    },
    prefixes=QWEN2_5_VL_WEIGHTS.prefixes,
    tied=shared.TIED,
)
